"""Make report.html of runs anew, from what their folders hold: python -m tools.report RUN...

Training writes it after every step; this is for runs of older versions and those whose report was not written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.errors import RunError
from utils.html_report import write_html_report


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, such as runs/demo"
    )
    args = parser.parse_args(argv)
    try:
        for run_dir in args.runs:
            print(write_html_report(run_dir))
    except (RunError, ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
