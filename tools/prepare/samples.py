"""What tools/prepare_folder.py makes of every format: samples that draw their masks; and Cityscapes', drawn already."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datasets import cityscapes
from datasets.class_index import read_image_size
from datasets.masks import MaskCoding, read_mask
from datasets.tasks import IGNORE_INDEX
from utils.errors import DataError
from utils.images import UNDECODABLE, Colour, UInt8Array, describe_undecodable

Ids = Mapping[str, int]
"""Class id of every label that is wanted; others are background."""
Region = npt.NDArray[np.bool_]

RESERVED = {"background": 0, "_background_": 0, "__ignore__": IGNORE_INDEX}
"""Labels that are no classes; those with underscores are Labelme's own."""


class Sample(NamedTuple):
    """An image with the files that its mask is drawn from, and what draws it: (H,W) uint8 in class ids.

    `draw` can be sent to another process. It raises DataError or OSError naming what is wrong.
    """

    image_id: str
    image: Path
    sources: tuple[Path, ...]
    draw: Callable[[Ids], UInt8Array]


class Annotations(NamedTuple):
    """The images of a source, its labels in their order, and their colours where it has some."""

    samples: list[Sample]
    labels: list[str]
    colours: Mapping[str, Colour]


def read_cityscapes(root: Path, split: str) -> Annotations:
    """A split of Cityscapes as `datasets/cityscapes.py` finds it."""
    dataset = cityscapes.open_split(root, split)
    samples = [
        Sample(image_id, image, (mask,), partial(draw_cityscapes, mask, dataset.coding))
        for image_id, (image, mask) in dataset.samples.items()
    ]
    labels, colours = dataset.classes[1:], dataset.palette[1:]
    return Annotations(samples, [*labels], dict(zip(labels, colours, strict=True)))


def draw_cityscapes(mask: Path, coding: MaskCoding, ids: Ids) -> UInt8Array:
    """The mask (H,W) of a Cityscapes PNG; void stays ignored."""
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: len(cityscapes.CLASSES)] = [id_of(label, ids) for label in cityscapes.CLASSES]
    return table[coding.decode(mask, read_mask(mask))]


def draw_regions(shapes: Iterable[tuple[str, Callable[[], Region]]], ids: Ids) -> list[tuple[int, Region]]:
    """Class id and region of shapes, each a label with what draws it.

    Labels that are not wanted are background, which covers what lies below; where they cannot be drawn (points, boxes),
    they are passed over. Raises the DataError of a shape that is wanted.
    """
    regions = []
    for label, draw in shapes:
        try:
            regions.append((id_of(label, ids), draw()))
        except DataError:
            if label in ids or label in RESERVED:
                raise
    return regions


def paint(
    size: tuple[int, int], regions: Iterable[tuple[int, Region]], below: Iterable[tuple[int, Region]] = ()
) -> UInt8Array:
    """A mask (H,W) uint8 of regions over background: smaller ones over larger ones, of equal ones the later on top.

    What is `below` is covered by all of them.
    """
    mask = np.zeros(size, np.uint8)
    for layer in (below, regions):
        cropped = [_crop(class_id, region) for class_id, region in layer if region.any()]
        for class_id, window, region in sorted(cropped, key=lambda found: -int(found[2].sum())):
            mask[window][region] = class_id
    return mask


def _crop(class_id: int, region: Region) -> tuple[int, tuple[slice, slice], Region]:
    """A region with the window that holds it: many small ones on a large image would fill the memory."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return class_id, window, region[window].copy()


def id_of(label: str, ids: Ids) -> int:
    """The class id of a label, 0 where it is none."""
    return RESERVED.get(label, ids.get(label, 0))


def make_id(path: Path) -> str:
    """The image id of a file in a folder: its path without suffix, folders joined by '_'."""
    return "_".join(part for part in path.with_suffix("").parts if part not in (path.anchor, ".."))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height), turned upright; raises DataError or OSError naming the file."""
    try:
        return read_image_size(str(path))
    except FileNotFoundError:
        raise
    except UNDECODABLE as error:
        raise DataError(describe_undecodable(path, "an image", error)) from error


def load_json(file: Path) -> Any:
    """What a JSON file holds; raises DataError or OSError naming it."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error
