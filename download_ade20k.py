"""Fill data_root/ADEChallengeData2016 with the ADE20K scene parsing benchmark (a download of about 1 GB).

Standard library only. Run it again after an interruption: it continues the download.
Where the set is complete it does nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.arguments import new_parser
from utils.download.archives import unpack
from utils.download.fetching import UsageError, fetch
from utils.errors import explain

EXAMPLES = """
python download_ade20k.py
python download_ade20k.py --data-root /data --url https://mirror.example.org/ADEChallengeData2016.zip
"""
NAME = "ADEChallengeData2016"
MIRRORS = (f"http://data.csail.mit.edu/places/ADEchallenge/{NAME}.zip",)
SHA1 = "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"
SPLITS = ("training", "validation")


def read_stems(folder: Path, suffix: str) -> set[str]:
    """Names, without suffix, of the folder's files that are not empty; none if there is no such folder."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {Path(e.name).stem for e in entries if e.name.endswith(suffix) and e.stat().st_size > 0}


def describe_missing(root: Path) -> str | None:
    """What the set under `root` lacks: images and masks must be there and pair up; None if complete."""
    for split in SPLITS:
        images, masks = root / "images" / split, root / "annotations" / split
        image_stems, mask_stems = read_stems(images, ".jpg"), read_stems(masks, ".png")
        if not image_stems and not mask_stems:
            return f"{images} holds no images"
        if unmatched := sorted(mask_stems - image_stems):
            return f"{images} lacks {len(unmatched)} of {len(mask_stems)} images, first {unmatched[0]}.jpg"
        if unmatched := sorted(image_stems - mask_stems):
            return f"{masks} lacks {len(unmatched)} of {len(image_stems)} masks, first {unmatched[0]}.png"
    return None


def describe_counts(root: Path) -> str:
    """'20210 training and 2000 validation images', as found under `root`."""
    counts = (f"{len(read_stems(root / 'images' / split, '.jpg'))} {split}" for split in SPLITS)
    return " and ".join(counts) + " images (published: 20210 and 2000)"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python download_ade20k.py", __doc__, EXAMPLES)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--data-root", type=Path, default=Path("data_root"), metavar="FOLDER", help="default: %(default)s"
    )
    output.add_argument("--keep-archive", action="store_true", help="keep the zip after it is unpacked")
    source = parser.add_argument_group("where it comes from")
    source.add_argument(
        "--url", action="append", help=f"URL of {NAME}.zip instead of the built-in one; repeat it for mirrors"
    )
    source.add_argument(
        "--sha1",
        default=SHA1,
        metavar="HEX",
        help="expected SHA-1 (default: as published; empty: not checked)",
    )
    source.add_argument("--sha256", default="", metavar="HEX", help="expected SHA-256, checked as well")
    return parser


def download(args: argparse.Namespace) -> None:
    """Make the set complete or raise OSError or ValueError saying what is wrong."""
    root: Path = args.data_root / NAME
    if describe_missing(root) is None:
        print(f"{root} is complete, nothing to do: {describe_counts(root)}")
        return
    archive: Path = args.data_root / f"{NAME}.zip"
    digests = {"sha1": args.sha1, "sha256": args.sha256}
    fetch(args.url or MIRRORS, archive, digests=digests, archive=True)
    unpack(archive, root, NAME)
    if not args.keep_archive:
        archive.unlink()
    missing = describe_missing(root)
    if missing is not None:
        raise ValueError(f"{root} is incomplete after unpacking: {missing}. Give another archive with --url")
    print(f"{root} is complete: {describe_counts(root)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        download(make_parser().parse_args(argv))
    except (OSError, ValueError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
