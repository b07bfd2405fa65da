"""Fetch one file from a list of mirrors, check it, and unpack it if it is an archive.

    python tools/fetch.py URL [URL ...] --output FILE [--size N] [--md5 HEX] [--sha1 HEX] [--sha256 HEX]
                          [--unpack-to FOLDER [--root NAME] [--keep-archive]]

Standard library only: it runs before anything is installed. The environment's `FETCH_BACKOFF_SECONDS`
(default 2) is the wait before the first retry; it doubles with every further one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Started by its path, as download_voc.sh does from any folder, Python looks for modules beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.arguments import new_parser
from utils.download.archives import unpack
from utils.download.fetching import ALGORITHMS, UsageError, fetch
from utils.errors import explain

EXAMPLES = """
python tools/fetch.py https://example.org/list.zip --output data_root/list.zip --unpack-to data_root/lists
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(
        "python tools/fetch.py", "Fetch one file from the first mirror that works, and check it.", EXAMPLES
    )
    files = parser.add_argument_group("what and where to")
    files.add_argument("urls", nargs="+", metavar="URL", help="mirrors of the same file, tried in order")
    files.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the file goes")
    files.add_argument("--unpack-to", type=Path, metavar="FOLDER", help="unpack the archive into this folder")
    files.add_argument("--root", default=".", metavar="NAME", help="the archive's folder that becomes FOLDER")
    files.add_argument("--keep-archive", action="store_true", help="keep FILE after it is unpacked")
    checks = parser.add_argument_group("how it is checked")
    checks.add_argument("--size", type=int, metavar="N", help="expected size in bytes")
    for key in ALGORITHMS:
        checks.add_argument(
            f"--{key}", default="", metavar="HEX", help=f"expected {key} (empty: not checked)"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = make_parser().parse_args(argv)
    digests = {key: getattr(args, key) for key in ALGORITHMS}
    try:
        fetch(args.urls, args.output, size=args.size, digests=digests, archive=args.unpack_to is not None)
        if args.unpack_to is not None:
            unpack(args.output, args.unpack_to, args.root)
            if not args.keep_archive:
                args.output.unlink()
    except (OSError, ValueError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
