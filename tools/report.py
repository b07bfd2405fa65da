"""Make report.html of runs anew, from what their folders hold.

Training writes it after every step; this is for runs of older versions and those whose report was not written.
"""

import argparse
from collections.abc import Sequence

from utils.arguments import fail, new_parser, to_path
from utils.errors import RunError

EXAMPLES = """
python -m tools.report runs/demo
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.report", __doc__, EXAMPLES)
    what = parser.add_argument_group("input")
    what.add_argument(
        "runs", type=to_path, nargs="+", metavar="RUN", help="folder of a run, such as runs/demo"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    from utils.report.html import write_html_report  # plotly: not for --help

    try:
        for run_dir in args.runs:
            print(write_html_report(run_dir))
    except (RunError, ValueError, OSError) as error:
        fail(parser, error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
