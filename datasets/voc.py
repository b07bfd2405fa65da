"""PASCAL VOC 2012 with the augmented training masks: its classes, their colours and orders, where its files lie."""

from __future__ import annotations

import os
import re
from pathlib import Path

from datasets.file_dataset import FileDataset
from datasets.listing import check_split, list_files, pair_samples, read_lines
from datasets.masks import MaskCoding
from datasets.source import file_source
from utils.errors import DataError
from utils.images import make_palette

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
PALETTE = make_palette(len(CLASSES))
CODING = MaskCoding(tuple(range(len(CLASSES))), palette=PALETTE)
_PAIR = re.compile(r"/?JPEGImages/(.+)\.jpg\s+/?SegmentationClass(?:Aug)?/(.+)\.png")

CLASS_ORDERS: dict[str, tuple[int, ...]] = {
    "15-1_b": (0, 12, 9, 20, 7, 15, 8, 14, 16, 5, 19, 4, 1, 13, 2, 11, 17, 3, 6, 18, 10),
    "15-1_c": (0, 13, 19, 15, 17, 9, 8, 5, 20, 4, 3, 10, 11, 18, 16, 7, 12, 14, 6, 1, 2),
    "15-1_d": (0, 15, 3, 2, 12, 14, 18, 20, 16, 11, 1, 19, 8, 10, 7, 17, 6, 5, 13, 9, 4),
    "15-1_e": (0, 7, 5, 3, 9, 13, 12, 14, 19, 10, 2, 1, 4, 16, 8, 17, 15, 18, 6, 11, 20),
    "15-1_f": (0, 7, 13, 5, 11, 9, 2, 15, 12, 14, 3, 20, 1, 16, 4, 18, 8, 6, 10, 19, 17),
    "15-1_g": (0, 7, 5, 9, 1, 15, 18, 14, 3, 20, 10, 4, 19, 11, 17, 16, 12, 8, 6, 2, 13),
    "15-1_h": (0, 12, 9, 19, 6, 4, 10, 5, 18, 14, 15, 16, 3, 8, 7, 11, 13, 2, 20, 17, 1),
    "15-1_i": (0, 13, 10, 15, 8, 7, 19, 4, 3, 16, 12, 14, 11, 5, 20, 6, 2, 18, 9, 17, 1),
    "15-1_j": (0, 1, 14, 9, 5, 2, 15, 8, 20, 6, 16, 18, 7, 11, 10, 19, 3, 4, 17, 12, 13),
    "15-1_k": (0, 16, 13, 1, 11, 12, 18, 6, 14, 5, 3, 7, 9, 20, 19, 15, 4, 2, 10, 8, 17),
    "15-1_l": (0, 10, 7, 6, 19, 16, 8, 17, 1, 14, 4, 9, 3, 15, 11, 12, 2, 18, 20, 13, 5),
    "15-1_m": (0, 18, 4, 14, 17, 12, 10, 7, 3, 9, 1, 8, 15, 6, 13, 2, 5, 11, 20, 16, 19),
    "15-1_n": (0, 5, 4, 13, 18, 14, 10, 19, 15, 7, 9, 3, 2, 8, 16, 20, 1, 12, 11, 6, 17),
    "15-1_o": (0, 9, 12, 13, 18, 7, 1, 15, 17, 10, 8, 4, 5, 20, 16, 6, 14, 19, 11, 2, 3),
    "15-1_p": (0, 9, 12, 13, 18, 2, 11, 15, 17, 10, 8, 4, 5, 20, 16, 6, 14, 19, 1, 7, 3),
    "15-1_q": (0, 3, 14, 13, 18, 2, 11, 15, 17, 10, 8, 4, 5, 20, 16, 6, 12, 19, 1, 7, 9),
    "15-1_r": (0, 3, 14, 13, 1, 2, 11, 15, 17, 7, 8, 4, 5, 9, 16, 19, 12, 6, 18, 10, 20),
    "15-1_s": (0, 3, 14, 6, 1, 2, 11, 12, 17, 7, 20, 4, 5, 9, 16, 19, 15, 13, 18, 10, 8),
    "15-1_t": (0, 3, 15, 13, 1, 2, 11, 18, 17, 7, 20, 8, 5, 9, 16, 19, 14, 6, 12, 10, 4),
    "15-1_u": (0, 3, 15, 13, 14, 6, 11, 18, 17, 7, 20, 8, 4, 9, 16, 10, 1, 2, 12, 19, 5),
    "15-1_v": (0, 1, 2, 12, 14, 6, 19, 18, 17, 5, 20, 8, 4, 9, 16, 10, 3, 15, 13, 11, 7),
    "15-1_w": (0, 1, 2, 12, 14, 13, 19, 18, 7, 11, 20, 8, 4, 9, 16, 10, 3, 15, 6, 5, 17),
}
"""Published orders of the task 15-1: background, the 15 base classes, then one class a step."""

HOW_TO_GET = "run `bash download_voc.sh`"
EXPECTED = (
    "Expected below the data root: VOCdevkit/VOC2012/JPEGImages/ID.jpg, .../SegmentationClassAug/ID.png, "
    f".../ImageSets/Segmentation/val.txt and train_aug.txt (there or in .../list/); {HOW_TO_GET}"
)


def open_split(root: Path, split: str, problems: list[str] | None = None) -> FileDataset:
    """One split of VOC below `root`/VOCdevkit/VOC2012.

    'val' is val.txt. 'train' is train_aug.txt or, where there is none, every mask of SegmentationClassAug that
    is not in val.txt.

    Raises (layout errors of single files are only added to `problems`, where given):
        ValueError: unknown split, or a list that is not UTF-8.
        FileNotFoundError: a folder, a list, an image or a mask is missing, or the split is empty.
    """
    check_split(split)
    voc = root / "VOCdevkit" / "VOC2012"
    images = list_files(voc / "JPEGImages", {".jpg"}, EXPECTED, problems)
    masks = list_files(voc / "SegmentationClassAug", {".png"}, EXPECTED, problems)
    samples = pair_samples(
        _list_ids(voc, split, list(masks)),
        images,
        masks,
        image_pattern=voc / "JPEGImages" / "ID.jpg",
        mask_pattern=voc / "SegmentationClassAug" / "ID.png",
        expected=EXPECTED,
        problems=problems,
    )
    return FileDataset("voc", split, CLASSES, PALETTE, samples, mask_coding=CODING)


def _list_ids(voc: Path, split: str, mask_ids: list[str]) -> list[str]:
    val_list = voc / "ImageSets" / "Segmentation" / "val.txt"
    if split == "val":
        return _read_list(val_list)
    for folder in (voc / "ImageSets" / "Segmentation", voc / "list"):
        if os.path.lexists(folder / "train_aug.txt"):
            return _read_list(folder / "train_aug.txt")
    val_ids = set(_read_list(val_list))
    return [image_id for image_id in mask_ids if image_id not in val_ids]


def _read_list(path: Path) -> list[str]:
    """Ids of a list whose lines are bare ids or '/JPEGImages/ID.jpg /SegmentationClassAug/ID.png' pairs.

    An id is a whole line: it may hold dots and blanks. Raises DataError for a pair of two ids.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such list. {EXPECTED}") from None
    ids = []
    for number, line in enumerate(map(str.strip, lines), 1):
        pair = _PAIR.fullmatch(line)
        if pair is not None and pair[1] != pair[2]:
            raise DataError(
                f"{path}: line {number} pairs the image {pair[1]!r} with the mask of {pair[2]!r}; correct the line"
            )
        if line:
            ids.append(pair[1] if pair is not None else line)
    if not ids:
        raise FileNotFoundError(f"{path}: the list is empty. {EXPECTED}")
    return ids


SOURCE = file_source(open_split, HOW_TO_GET, CLASSES, CLASS_ORDERS)
