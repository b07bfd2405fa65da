"""Cityscapes (fine annotations): where its files lie, its 19 classes and colours, and what its label numbers mean.

There is no true background: every pixel of the masks is one of the 19 classes or void, which is ignored. Class 0 is
still learned, from the pixels that a step does not label; in evaluation it cannot occur and has no IoU.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from datasets.domains import Domains
from datasets.file_dataset import FileDataset
from datasets.listing import check_split, list_files, pair_samples, tell
from datasets.masks import MaskCoding
from datasets.source import file_source
from utils.errors import DataError
from utils.images import Colour, open_mask
from utils.labels import IGNORE_INDEX

HOW_TO_GET = (
    "register at www.cityscapes-dataset.com, and unpack leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip there"
)
EXPECTED = (
    "Expected below the data root: leftImg8bit/{train,val}/CITY/ID_leftImg8bit.png and "
    f"gtFine/{{train,val}}/CITY/ID_gtFine_labelIds.png (or ID_gtFine_labelTrainIds.png); {HOW_TO_GET}"
)

_NUM_SAMPLED = 8
_IMAGE = "_leftImg8bit"
_NAMES_COLOURS_LABEL_IDS: tuple[tuple[str, Colour, int], ...] = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)

CLASSES = ("background", *(name for name, _, _ in _NAMES_COLOURS_LABEL_IDS))
PALETTE = ((0, 0, 0), *(colour for _, colour, _ in _NAMES_COLOURS_LABEL_IDS))

_ID_OF_LABEL_ID = {label_id: 1 + i for i, (_, _, label_id) in enumerate(_NAMES_COLOURS_LABEL_IDS)}
CODINGS = {
    "_gtFine_labelIds": MaskCoding(tuple(_ID_OF_LABEL_ID.get(number, IGNORE_INDEX) for number in range(34))),
    "_gtFine_labelTrainIds": MaskCoding(tuple(range(1, len(CLASSES)))),
}
"""What the pixels of both kinds of masks mean, by the end of their name; a split takes the first kind that it has."""


def open_split(root: Path, split: str, problems: list[str] | None = None) -> FileDataset:
    """One split of Cityscapes in `root`, whose masks show ids 1 to 19 and 255.

    Raises (layout errors of single files are only added to `problems`, where given):
        ValueError: unknown split.
        FileNotFoundError: a folder, an image or a mask is missing, or the split is empty.
    """
    check_split(split)
    images = _with_ending(_list_cities(root / "leftImg8bit" / split, problems), _IMAGE)
    annotations = _list_cities(root / "gtFine" / split, problems)
    found = {ending: _with_ending(annotations, ending) for ending in CODINGS}
    ending = next((ending for ending in CODINGS if found[ending]), next(iter(CODINGS)))
    masks = found[ending]
    samples = pair_samples(
        sorted(images.keys() | masks.keys()),
        images,
        masks,
        image_pattern=root / "leftImg8bit" / split / "CITY" / f"ID{_IMAGE}.png",
        mask_pattern=root / "gtFine" / split / "CITY" / f"ID{ending}.png",
        expected=EXPECTED,
        problems=problems,
    )
    if ending == next(iter(CODINGS)):
        _check_label_ids([mask for _, mask in samples.values()])
    return FileDataset("cityscapes", split, CLASSES, PALETTE, samples, mask_coding=CODINGS[ending])


def _check_label_ids(masks: list[Path]) -> None:
    """Raise DataError where masks that are named label ids hold train ids, which are read as other classes.

    No street is without traffic lights, vegetation, sky, people and cars: label ids above the largest train id.
    """
    largest = len(CLASSES) - 2
    numbers: set[int] = set()
    for path in masks[:: max(1, len(masks) // _NUM_SAMPLED)]:
        try:
            numbers |= set(np.unique(np.asarray(open_mask(path), np.uint8)).tolist()) - {IGNORE_INDEX}
        except (DataError, OSError):  # told when all masks are read
            continue
        if max(numbers, default=0) > largest:
            return
    if numbers:
        raise DataError(
            f"{masks[0]}: this and the other masks looked at hold the numbers {sorted(numbers)} only: these are "
            f"train ids (0 to {largest}), not label ids (0 to 33); name them ID_gtFine_labelTrainIds.png"
        )


def _list_cities(folder: Path, problems: list[str] | None) -> dict[str, Path]:
    """Stem -> path of the PNGs in the folders of `folder`."""
    try:
        cities = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder}: no such folder. {EXPECTED}") from None
    files: dict[str, Path] = {}
    for city in cities:
        found = list_files(folder / city, {".png"}, EXPECTED, problems)
        if twice := sorted(files.keys() & found.keys()):
            error = DataError(
                f"{found[twice[0]]}: {files[twice[0]].parent} has a file of this name, too ({len(twice)} in all); "
                "keep one of them"
            )
            tell(error, problems)
        files = found | files
    return files


def _with_ending(files: dict[str, Path], ending: str) -> dict[str, Path]:
    """Image id -> path of the files whose stem is ID and the ending."""
    return {stem.removesuffix(ending): path for stem, path in files.items() if stem.endswith(ending)}


CITIES = (
    *("aachen", "bremen", "darmstadt", "erfurt", "hanover", "krefeld", "strasbourg", "tubingen", "weimar"),
    *("bochum", "cologne", "dusseldorf", "hamburg", "jena", "monchengladbach", "stuttgart", "ulm", "zurich"),
    *("frankfurt", "lindau", "munster"),
)
"""The 21 cities with public labels, in PLOP's order of learning as recalled, not checked; the last three are those of
the validation split."""


def _city(image_id: str) -> str:
    return image_id.partition("_")[0]


SOURCE = file_source(open_split, HOW_TO_GET, CLASSES, domains=Domains(CITIES, _city))
