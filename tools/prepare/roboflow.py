"""Roboflow's "PNG mask semantic" export: in train/ and valid/ IMAGE.jpg, IMAGE_mask.png and a _classes.csv."""

import argparse
import csv
from functools import partial
from pathlib import Path

from datasets.folder import IMAGE_SUFFIXES
from datasets.listing import read_lines
from tools.prepare.checked import clean_name
from tools.prepare.files import list_below
from tools.prepare.samples import Annotations, Format, count_names, draw_numbers, make_sample
from utils.errors import DataError

CLASSES = "_classes.csv"
_MASK = "_mask"


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The folders train and valid, or the folder itself where it holds the list of classes."""
    root: Path = args.source
    if (root / CLASSES).is_file():
        return {"train": read_folder(root)}
    folders = {"train": root / "train"} | ({"val": root / "valid"} if (root / "valid").is_dir() else {})
    found = {split: read_folder(folder) for split, folder in folders.items()}
    if (root / "test").is_dir():
        train = found["train"]
        found["train"] = train._replace(notes=[*train.notes, f"{root / 'test'}: is left out"])
    return found


def read_folder(folder: Path) -> Annotations:
    """The images of a folder that have a mask; labels by their number. Raises DataError or OSError."""
    labels = _read_list(folder / CLASSES)
    images = {path.with_suffix(""): path for path in list_below(folder, IMAGE_SUFFIXES)}
    masks = [path for path in list_below(folder, {".png"}) if path.stem.endswith(_MASK)]
    samples, problems = [], []
    for mask in masks:
        image = images.get(mask.with_name(mask.stem.removesuffix(_MASK)))
        if image is None:
            problems.append(f"{mask}: is the mask of no image that lies beside it; restore or remove one")
            continue
        name = image.relative_to(folder).as_posix()
        draw = partial(draw_numbers, mask, labels)
        samples.append(make_sample(mask, name, folder, False, draw, []))
    used = {sample.image for sample in samples}
    bare = [path.name for path in images.values() if path not in used and path not in masks]
    notes = [f"{folder}: {count_names(bare)} without a mask are left out"] if bare else []
    if not samples:
        raise DataError(f"{folder}: no mask; expected IMAGE{_MASK}.png beside every image")
    return Annotations(samples, [*labels.values()], folder, problems=problems, notes=notes)


def _read_list(file: Path) -> dict[int, str]:
    """The labels by number of a CSV 'Pixel Value, Class'; raises DataError with a line for everything wrong."""
    problems: list[str] = []
    labels: dict[int, str] = {}
    for number, row in enumerate(csv.reader(read_lines(file), skipinitialspace=True), start=1):
        if number == 1 or not row:
            continue
        try:
            if len(row) != 2 or not row[0].strip().isdecimal() or int(row[0][:9]) > 255:
                raise ValueError("allowed is a number from 0 to 255 and a name, as '1, pear'")
            value, name = int(row[0]), clean_name(row[1])
            if value in labels or name in labels.values():
                raise ValueError("its number or its name is there twice; every class has its own")
            labels[value] = name
        except ValueError as error:
            problems.append(f"{file}: line {number}: found {', '.join(row)!r}; {error}")
    if problems or not labels:
        raise DataError("\n".join(problems or [f"{file}: lists no class; expected 'Pixel Value, Class'"]))
    return dict(sorted(labels.items()))


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    what.add_argument("source", type=Path, metavar="FOLDER", help="holds train/ and valid/")


ROBOFLOW = Format(
    "Roboflow's semantic masks (PNG and CSV)",
    "roboflow export/ --output fruit",
    _add_arguments,
    read,
)
