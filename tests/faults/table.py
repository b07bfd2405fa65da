"""The table of faults in docs/faults.md: what this code, and an older one, answer to every case.

python tests/faults/table.py --code FOLDER --to tests/faults/before.json   asks the code in a folder
python -m tests.faults.table                                               prints the table
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS = 20
"""After which a program hangs."""
BYTES = 12 * 2**30
LONGEST = 110


def load_cases(code: Path) -> list[Any]:
    """The cases of this folder, run against the code in another."""
    sys.path[:] = [str(code), *(path for path in sys.path if Path(path).resolve() != HERE)]
    import tests

    # Whatever that code has of these, the cases are those beside this file.
    tests.__path__.insert(0, str(HERE.parent))
    module = importlib.import_module("tests.faults.test_cases")
    return list(module.CASES)


def ask(case: Any, runs: Path, answers: Any) -> None:
    """Put a case's answer into a queue, from a process of its own."""
    from tests.faults.place import Place

    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 2)
        with tempfile.TemporaryDirectory() as folder:
            try:
                answer = case.act(Place(Path(folder) / "here", runs))
            except BaseException as error:
                answer = f"the case itself fails: {type(error).__name__}: {error}"
        answers.put(answer)


def ask_all(code: Path, wanted: str) -> dict[str, str]:
    """The answer of the code in a folder to every case, by kind and name."""
    cases = [case for case in load_cases(code) if re.search(wanted, key_of(case))]
    from tests.faults.place import prepare_runs

    context = multiprocessing.get_context("fork")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare_runs(Path(folder))
        for case in cases:
            answers = context.Queue()
            process = context.Process(target=ask, args=(case, Path(folder), answers))
            process.start()
            try:
                answer = answers.get(timeout=SECONDS)
            except Exception:
                is_alive = process.is_alive()
                answer = "hangs" if is_alive else f"dies by signal {-(process.exitcode or 0)}"
                process.kill()
            process.join()
            found[key_of(case)] = shorten(answer)
            print(f"{key_of(case)}\n    {answer[:300]}", flush=True)
    return found


def key_of(case: Any) -> str:
    """What names a case."""
    return f"{case.kind}: {case.name}"


def shorten(answer: str) -> str:
    """An answer as a cell of the table."""
    answer = "0, the plan" if answer.startswith("exit 0: task:") else answer
    text = re.sub(r"\s+", " ", answer).replace("exit 0", "0").replace("exit 2", "2").replace("exit 1", "1")
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def render() -> str:
    """The table: kind, fault, the answer at the commit before, a part of the answer now."""
    from tests.faults.test_cases import CASES

    before = json.loads((HERE / "before.json").read_text(encoding="utf-8"))
    lines = ["| kind | fault | before | now |", "|---|---|---|---|"]
    for case in CASES:
        kind, name, now = map(shorten, (case.kind, case.name, case.now))
        lines.append(f"| {kind} | {name} | {before.get(key_of(case), 'not tried')} | {now} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--code", type=Path, help="folder of the code to ask")
    parser.add_argument("--to", type=Path, help="file that gets its answers")
    parser.add_argument("--only", default="", help="pattern of the cases to ask")
    args = parser.parse_args()
    if args.code is None:
        print(render(), end="")
        return
    found = ask_all(args.code.resolve(), args.only)
    if args.to is not None:
        known = json.loads(args.to.read_text(encoding="utf-8")) if args.only else {}
        args.to.write_text(json.dumps(known | found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
