"""Draw report.html and plots/ of runs anew, from what their folders hold.

Training draws them (logging.report); this is for runs of older versions and those whose report was not drawn.
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
    # plotly and matplotlib: not for --help
    from utils.report.html import write_html_report
    from utils.report.reading import read_results
    from utils.report.run_files import write_plots

    try:
        for run_dir in args.runs:
            print(write_html_report(run_dir))
            write_plots(run_dir, read_results(run_dir))
    except (RunError, ValueError, OSError) as error:
        fail(parser, error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
