"""Cityscapes, whose masks are drawn already."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets import cityscapes
from datasets.listing import SPLITS
from tools.prepare.samples import Annotations, Format, Sample, draw_numbers
from utils.labels import IGNORE_INDEX


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """Both splits."""
    return {split: read_split(args.source, split) for split in SPLITS}


def read_split(root: Path, split: str) -> Annotations:
    """A split of Cityscapes as `datasets/cityscapes.py` finds it; void stays ignored."""
    problems: list[str] = []
    dataset = cityscapes.open_split(root, split, problems)
    table = {number: _label(class_id, dataset.classes) for number, class_id in enumerate(dataset.coding.ids)}
    table[IGNORE_INDEX] = None
    samples = [
        Sample(image_id, image, (mask,), partial(draw_numbers, mask, table))
        for image_id, (image, mask) in dataset.samples.items()
    ]
    labels, colours = dataset.classes[1:], dataset.palette[1:]
    return Annotations(
        samples, [*labels], root / "leftImg8bit" / split, dict(zip(labels, colours, strict=True)), problems
    )


def _label(class_id: int, classes: Sequence[str]) -> str | None:
    return None if class_id == IGNORE_INDEX else classes[class_id]


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    what.add_argument("source", type=Path, metavar="ROOT", help="holds the two folders")


CITYSCAPES = Format(
    "leftImg8bit/ and gtFine/ with train and val",
    "cityscapes data_root/cityscapes --output streets --link",
    _add_arguments,
    read,
    may_lack_val=False,
)
