"""Runs beside the published figures of the same data set, task and setting, the nearest protocol first.

A run's figures are computed anew, from its confusion matrix, in the way in which each row counts background; where a
row does not say how it counts, both figures are given. Every known difference of protocol is named. Runs that differ
in the seed only are one entry, mean ± standard deviation. docs/published.tsv holds the rows.
"""

import argparse
import sys
from collections.abc import Sequence

from utils.arguments import add_overwrite, fail, new_parser, to_path
from utils.files import check_output, write_atomic

EXAMPLES = """
python -m tools.compare runs/voc_15-1
python -m tools.compare runs/voc_* --method PLOP --format md --plot comparison.png
python -m tools.compare runs/voc_15-1 --format appendix
"""
FORMATS = ("text", "md", "json", "appendix")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.compare", __doc__, EXAMPLES)
    what = parser.add_argument_group("input")
    what.add_argument(
        "runs",
        type=to_path,
        nargs="+",
        metavar="RUN",
        help="folders of finished runs, and tables of runs (.jsonl)",
    )
    what.add_argument(
        "--method", metavar="NAME", help="rows of this method only, such as PLOP; its variants are among them"
    )
    what.add_argument("--rows", type=int, default=10, metavar="N", help="rows a run; 0 is all; default: 10")
    how = parser.add_argument_group("output")
    how.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="appendix: how a paper should state the runs, without the rows; default: text",
    )
    how.add_argument(
        "--plot", type=to_path, metavar="FILE", help="write a figure of runs and rows over tasks there (PNG)"
    )
    add_overwrite(how)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    # What reads runs knows all methods and models, and with them PyTorch: not for --help.
    from tools.published.comparison import compare, group_runs
    from tools.published.formats import format_json, format_markdown, format_text
    from tools.published.registry import is_method, read_recipes, read_rows
    from tools.published.statement import format_statement
    from tools.summary.images import describe_image_differences
    from tools.summary.records import read_runs

    formats = {
        "text": format_text,
        "md": format_markdown,
        "json": format_json,
        "appendix": format_statement,
    }
    try:
        if args.plot is not None:
            check_output("--plot", args.plot, args.runs, args.overwrite)
        if args.rows < 0:
            raise ValueError(f"--rows {args.rows}: expected 0, for all, or more")
        rows = read_rows()
        if args.method is not None and not any(is_method(row, args.method) for row in rows):
            known = ", ".join(sorted({row.method.partition(" ")[0] for row in rows}))
            raise ValueError(f"--method {args.method}: docs/published.tsv has no such method; it has {known}")
        runs = read_runs(args.runs)
        finished = [run for run in runs if run.is_complete]
        for run in (run for run in runs if not run.is_complete):
            print(f"{run.source}: not compared, its task is not finished", file=sys.stderr)
        if not finished:
            raise ValueError(
                "none of these runs has finished its task; published figures are of the last step"
            )
        comparisons = [compare(group, rows, read_recipes(), args.method) for group in group_runs(finished)]
        if args.plot is not None:
            from tools.published.figure import draw

            write_atomic(args.plot, draw(comparisons))
    except (ValueError, OSError) as error:
        fail(parser, error)
    print(formats[args.format](comparisons, args.rows), end="")
    for line in describe_image_differences(finished):
        print(line, file=sys.stderr if args.format == "json" else sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
