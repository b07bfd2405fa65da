"""What of a step's images is rare: pixels of every class, and images to show more often."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from datasets.class_index import map_in_processes
from datasets.incremental import StepDataset
from datasets.source import SegmentationDataset
from utils.errors import DataError
from utils.labels import IGNORE_INDEX

Counts = npt.NDArray[np.int64]


def count_pixels(
    dataset: SegmentationDataset, image_ids: Sequence[str], num_workers: int, description: str
) -> Counts:
    """Pixels (N,256) of every data set id in the labels of images; 0 for an image that cannot be read."""
    count = partial(_count_label, dataset)
    return np.array([*map_in_processes(count, image_ids, num_workers, description, "mask")]).reshape(-1, 256)


def _count_label(dataset: SegmentationDataset, image_id: str) -> Counts:
    try:
        return np.bincount(dataset.read_label(image_id).ravel(), minlength=256)
    except (DataError, OSError):  # training tells of it
        return np.zeros(256, np.int64)


def count_labels(dataset: StepDataset, num_workers: int) -> Counts:
    """Pixels (256,) of every label of a step's images, as the step sees them; those that are ignored left out."""
    counts = count_pixels(dataset.source, dataset.image_ids, num_workers, "counting pixels")
    is_memory = np.array([image_id in dataset.memory_ids for image_id in dataset.image_ids], bool)
    total = np.zeros(256, np.int64)
    for table, rows in ((dataset.table, ~is_memory), (dataset.memory_table, is_memory)):
        np.add.at(total, table, counts[rows].sum(axis=0))
    total[IGNORE_INDEX] = 0
    return total


def balanced_weights(counts: Counts, classes: Collection[int]) -> dict[int, float]:
    """Weights of classes: √(pixels of the most frequent label / pixels of the class), 1 for one without pixels.

    counts: pixels of every label (K,), of background, too. Ours: the root, as a weight in proportion to 1 / pixels lets
    classes of a thousandth of the pixels outweigh all others.
    """
    return {c: math.sqrt(counts.max() / counts[c]) if counts[c] else 1.0 for c in classes}


def repeat_images(
    image_classes: Mapping[str, Collection[int]],
    image_ids: Sequence[str],
    classes: Collection[int],
    threshold: float,
) -> list[int]:
    """How often an epoch shows each image: max over its classes of √(threshold / share), at least once.

    The share is that of the images that show the class (repeat factor sampling, LVIS, arXiv 1908.03195). A fraction is
    rounded up for that share of the images, by a hash of their ids. classes: those that count, as data set ids.
    """
    wanted = set(classes)
    shown = [wanted.intersection(image_classes.get(image_id, ())) for image_id in image_ids]
    counts = {c: sum(c in ids for ids in shown) for c in wanted}
    factor = {c: math.sqrt(threshold * len(image_ids) / count) for c, count in counts.items() if count}
    return [
        math.floor(max([1.0, *(factor[c] for c in ids)]) + _position(image_id))
        for image_id, ids in zip(image_ids, shown, strict=True)
    ]


def _position(image_id: str) -> float:
    """Where an id falls from 0 to below 1."""
    return int.from_bytes(hashlib.sha1(f"repeat/{image_id}".encode()).digest()[:6], "big") / 256**6
