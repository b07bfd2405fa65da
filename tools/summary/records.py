"""A table of runs: JSON lines, one a run, with its scores and how its config differs from a recipe's.

Fields that cannot change a result (`MAY_DIFFER`) are left out of the differences, but for the variant. The groups of
results.json are left out too: they follow from `per_class_iou` (`utils.metrics.class_groups`).
"""

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tools.summary.runs import SCALARS, Run, make_run, read_run
from trainer.config import load_config
from trainer.stored_config import MAY_DIFFER, differing_fields, foreign_fields, with_defaults
from utils.config.fields import flatten, is_below
from utils.config.read import read_yaml
from utils.documents import parse_json
from utils.errors import explain
from utils.files import require_regular, write_atomic

ROOT = Path(__file__).resolve().parents[2]


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read every run that the paths name; raises ValueError or OSError naming a path, a file or a line."""
    runs: list[Run] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such folder; name folders of runs, such as runs/*, or tables of them"
            )
        if path.suffix == ".jsonl" and not path.is_dir():
            runs += read_table(path)
        elif os.path.lexists(path / "config.yaml"):
            runs.append(read_run(path))
    if not runs:
        raise ValueError(
            "none of these is the folder of a run, which holds config.yaml, or a table of runs; name some, such as "
            "runs/*"
        )
    return runs


def read_table(path: Path) -> list[Run]:
    """Read the runs of a table; raises ValueError or OSError naming the file, and the line where one is wrong."""
    bases: dict[tuple[str, str], dict[str, Any]] = {}
    runs = []
    for number, line in enumerate_lines(path):
        try:
            key = line["base"], line["method"]
            if key not in bases:
                bases[key] = base_fields(*key)
            config = bases[key] | line["changes"] | {"log": line["name"]}
            runs.append(make_run(f"{path}:{line['name']}", config, line))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"{path}:{number}: {describe(error)}; correct the line, or record the run anew"
            ) from error
    return runs


def enumerate_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of every line; raises ValueError naming file and line, OSError naming the file."""
    first_of: dict[str, int] = {}
    require_regular(path)
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = parse_json(text)
            if not isinstance(line, dict):
                raise TypeError(f"expected a mapping, found {type(line).__name__}")
            name = line["name"]
            if not isinstance(name, str) or not isinstance(line["changes"], dict):
                raise TypeError("name has to be a text, changes a mapping")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: {describe(error)}; correct or remove the line") from error
        if name in first_of:
            raise ValueError(
                f"{path}:{number}: run {name} stands in line {first_of[name]} already; remove one of them"
            )
        first_of[name] = number
        yield number, line


def describe(error: Exception) -> str:
    """Say what is wrong with a line."""
    reason = f"{error} is missing" if isinstance(error, KeyError) else explain(error)
    return f"not the line of a run ({reason})"


def add_lines(path: Path, lines: Sequence[Mapping[str, Any]], overwrite: bool) -> None:
    """Append lines to a table, which is replaced as a whole; with `overwrite` a line takes its namesake's place.

    Raises ValueError, and leaves the table as it was, where the table holds a run of this name otherwise, or two lines
    have one name.
    """
    table = {line["name"]: line for _, line in enumerate_lines(path)} if path.exists() else {}
    names = [line["name"] for line in lines]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name}: two runs have this name; rename the folder of one")
        if name in table and not overwrite:
            raise ValueError(f"{path}: holds a run {name} already; --overwrite replaces its line")
    table |= {line["name"]: dict(line) for line in lines}
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in table.values())
    write_atomic(path, text)


def record_run(folder: Path, base: Path, note: str = "") -> dict[str, Any]:
    """Return the line of a finished run whose config is `base` with some fields set.

    Raises ValueError or OSError naming the file: of a run that has not finished, and where the config cannot be made
    from `base` that way.
    """
    base = base.resolve()
    run = read_run(folder)
    if not run.is_complete:
        raise ValueError(
            f"{folder}: has finished {len(run.results['steps'])} steps of its task; a table holds whole tasks: "
            "rerun its command"
        )
    stored = read_yaml(folder / "config.yaml")
    if foreign := foreign_fields(stored):
        raise ValueError(
            f"{folder / 'config.yaml'}: written by another version of this code, whose config this one does not read "
            f"({', '.join(foreign)}); tools.summarize reads the folder itself, a line of a table needs a run of this "
            "version"
        )
    config = with_defaults(stored)
    changes = changes_from(base, run.fields["method"], config)
    name = folder.resolve().name
    try:
        made = load_config(base, overrides(changes), log=name).model_dump(mode="json")
        problems = differing_fields(config, made)
    except ValueError as error:
        problems = str(error).splitlines()
    if problems:
        raise ValueError(
            f"{folder / 'config.yaml'}: cannot be made from {base} with --set ({'; '.join(problems)}); take the recipe "
            "of the run as --base"
        )
    return make_line(name, name_base(base), changes, run, note)


def make_line(name: str, base: str, changes: Mapping[str, Any], run: Run, note: str = "") -> dict[str, Any]:
    """Return the line of a run: who it is, how it is made, where it ran, what came out."""
    results = run.results
    steps = [{key: value for key, value in step.items() if key != "groups"} for step in results["steps"]]
    rest = {key: value for key, value in results.items() if key not in (*SCALARS, "steps", "class_names")}
    command = ["python", "main.py", "--config", base, "--log", name]
    for override in overrides(changes):
        command += ["--set", override]
    return {
        "name": name,
        "method": results["method"],
        "variant": run.fields["variant"],
        **{scalar: results[scalar] for scalar in SCALARS if scalar != "method"},
        "base": base,
        "changes": dict(changes),
        "command": shlex.join(command),
        **({"note": note} if note else {}),
        "seconds": round(sum(step["seconds"] for step in steps), 1),
        **rest,
        "class_names": results["class_names"],
        "steps": steps,
    }


def changes_from(base: Path, method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields, by dotted names, that `--set` has to change in `base` to get at `config`."""
    theirs = base_fields(str(base), method)
    own = dict(flatten(load_config(base).model_dump(mode="json")))
    is_own = own.get("method.name", own.get("method")) == method
    left_out = tuple(name for name in MAY_DIFFER if name != "variant")
    changes: dict[str, Any] = {} if is_own else {"method": method}
    for field, value in flatten(config):
        if (
            not is_below(field, left_out)
            and field not in ("method", "method.name")
            and theirs.get(field, _MISSING) != value
        ):
            changes[field] = value
    return changes


_MISSING = object()


def base_fields(base: str, method: str) -> dict[str, Any]:
    """Return every field, by dotted names, of a recipe under a method; a relative path is the repository's.

    Raises FileNotFoundError or ValueError naming the file or the field.
    """
    return dict(flatten(load_config(ROOT / base, [f"method={method}"]).model_dump(mode="json")))


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as `--set` takes them: FIELD=VALUE, the value in YAML."""
    texts = []
    for field, value in changes.items():
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
        texts.append(f"{field}={text.removesuffix('...' + chr(10)).strip()}")
    return texts


def name_base(base: Path) -> str:
    """Return the path of a recipe relative to the repository; the absolute one where it lies outside."""
    return base.relative_to(ROOT).as_posix() if base.is_relative_to(ROOT) else str(base)
