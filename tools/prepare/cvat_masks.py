"""CVAT's "Segmentation mask 1.1" (the zip, or its folder): PNGs in the colours of labelmap.txt."""

import argparse
import atexit
import re
import shutil
import tempfile
import zipfile
from functools import partial
from pathlib import Path

from datasets.folder import IMAGE_SUFFIXES
from datasets.listing import read_lines
from tools.prepare.checked import clean_name
from tools.prepare.files import list_below
from tools.prepare.samples import Annotations, Format, Sample, draw_colours, make_sample
from utils.download.archives import check_archive, extract
from utils.errors import DataError
from utils.images import Colour
from utils.units import format_size

_MASKS = "SegmentationClass"
MAX_UNPACKED = 4 << 30
"""Bytes that a zip may hold: a small one can claim terabytes."""


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The masks of the folder, with the images of another one (or its JPEGImages/)."""
    root: Path = args.source
    if root.is_file():
        root = _unpack(root, args.images)
    labels = _read_labels(root / "labelmap.txt")
    folder = args.images or root / "JPEGImages"
    images: dict[str, list[Path]] = {}
    for path in list_below(folder, IMAGE_SUFFIXES):
        images.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    samples = []
    for mask in list_below(root / _MASKS, {".png"}):
        name = mask.relative_to(root / _MASKS).with_suffix("").as_posix()
        found = images.get(name, [])
        if len(found) != 1:
            text = f"{mask}: found {len(found)} images {folder / name} of {', '.join(IMAGE_SUFFIXES)}; allowed is one"
            samples.append(Sample(name, mask, (mask,), None, problems=(text,)))
            continue
        image = found[0].relative_to(folder).as_posix()
        samples.append(make_sample(mask, image, folder, False, partial(draw_colours, mask, labels), []))
    if not samples:
        raise DataError(
            f"{root / _MASKS}: no mask; export the task as 'Segmentation mask 1.1', and unpack it"
        )
    colours = {label: colour for colour, label in labels.items()}
    return {"train": Annotations(samples, [*labels.values()], folder, colours)}


def _unpack(file: Path, images: Path | None) -> Path:
    """Return a folder with the masks of a zip, which goes when the program ends; DataError for any other file."""
    if images is None:
        raise DataError(
            f"{file}: give the folder of its images (--images), or unpack the zip and give its folder"
        )
    try:
        check_archive(file)
        with zipfile.ZipFile(file) as zipped:
            size = sum(member.file_size for member in zipped.infolist())
            if size > MAX_UNPACKED:
                raise ValueError(f"{format_size(size)} unpacked; allowed are {format_size(MAX_UNPACKED)}")
        folder = Path(tempfile.mkdtemp(prefix="masks_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        extract(file, folder)
    except (ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: no zip that can be read ({error}); export it again") from error
    return folder


def _read_labels(file: Path) -> dict[Colour, str]:
    """The label of every colour, by lines 'label:r,g,b:parts:actions'; DataError with a line for everything wrong."""
    problems: list[str] = []
    labels: dict[Colour, str] = {}
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            found = re.fullmatch(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3}):[^:]*:[^:]*", line)
            if found is None or max(int(part) for part in found.groups()[1:]) > 255:
                raise ValueError("allowed is 'label:r,g,b:parts:actions'")
            name = clean_name(found[1])
            colour = int(found[2]), int(found[3]), int(found[4])
            if colour in labels or name in labels.values():
                raise ValueError("its name or its colour is there twice; every label has its own")
            labels[colour] = name
        except ValueError as error:
            problems.append(f"{file}: line {number}: found {line!r}; {error}")
    if problems or not labels:
        raise DataError("\n".join(problems or [f"{file}: lists no label"]))
    return labels


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "source", type=Path, metavar="FOLDER", help="or its zip: labelmap.txt, SegmentationClass/"
    )
    what.add_argument(
        "--images", type=Path, metavar="FOLDER", help="where the images lie; default: its JPEGImages/"
    )


CVAT_MASKS = Format(
    "CVAT's masks ('Segmentation mask 1.1', the zip or its folder)",
    "cvat-masks masks/ --images photos/ --output fruit",
    _add_arguments,
    read,
)
