"""Write finished runs as lines of a table, which `tools.summarize` reads like the folders of runs.

A line holds a run's scores after every step, the machine and versions that it ran with, how its config differs from the
recipe it was made from (--base), and the command that makes it.
"""

import argparse
from collections.abc import Sequence

from tools.summary.records import add_lines, record_run
from utils.arguments import fail, new_parser, to_path

EXAMPLES = """
python -m tools.record runs/animals_* --base configs/voc_animals.yaml --to docs/results/voc_animals.jsonl
python -m tools.record runs/demo --base configs/demo.yaml --to demo.jsonl --overwrite --note "beside other work"
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.record", __doc__, EXAMPLES)
    what = parser.add_argument_group("input")
    what.add_argument("runs", type=to_path, nargs="+", metavar="RUN", help="folders of finished runs")
    what.add_argument(
        "--base",
        type=to_path,
        required=True,
        metavar="FILE",
        help="YAML file of the recipe that they were made from",
    )
    what.add_argument("--note", default="", metavar="TEXT", help="what a reader of these lines has to know")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--to",
        type=to_path,
        required=True,
        metavar="TABLE",
        help="file of JSON lines (.jsonl) to add them to",
    )
    output.add_argument("--overwrite", action="store_true", help="replace lines of runs of the same names")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.to.suffix != ".jsonl":
            raise ValueError(
                f"--to {args.to}: a table's name ends with .jsonl, by which tools.summarize knows it"
            )
        lines = [record_run(folder, args.base, args.note) for folder in args.runs]
        add_lines(args.to, lines, args.overwrite)
    except (ValueError, OSError) as error:
        fail(parser, error)
    print(f"{args.to}: {len(lines)} runs recorded")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
