"""All samples of a split, read and checked: what is wrong with them, and what their masks show."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.class_index import map_in_processes
from datasets.file_dataset import FileDataset, check_libraries, check_size, read_sound_image
from datasets.long_side import reduce_label
from datasets.masks import MaskCoding, read_mask
from datasets.rare import Counts, count_pixels
from datasets.source import SegmentationDataset
from datasets.unreadable import explain
from utils.errors import DataError
from utils.labels import IGNORE_INDEX


class Job(NamedTuple):
    """One sample to read."""

    image: Path
    mask: Path
    coding: MaskCoding
    long_side: int | None


class Finding(NamedTuple):
    """What a sample has shown: problems, pixels (256,) by data set id (None where the mask is wrong), digest."""

    problems: list[str]
    pixels: Counts | None
    digest: str | None


class Split(NamedTuple):
    """One split as it was found: the pixels (256,) by data set id of its sound samples, the digests of its images."""

    num_images: int
    pixels: Mapping[str, Counts]
    digests: Mapping[str, str]

    @property
    def image_classes(self) -> dict[str, frozenset[int]]:
        """The data set ids that each sound sample shows, 255 left out."""
        return {
            image_id: frozenset(np.flatnonzero(counts).tolist()) - {IGNORE_INDEX}
            for image_id, counts in self.pixels.items()
        }


def check_sample(job: Job) -> Finding:
    """Read image and mask and collect everything that is wrong with them."""
    problems, image, pixels, counts = [], None, None, None
    try:
        image = read_sound_image(job.image)
    except (DataError, OSError) as error:
        problems.append(explain(error))
    try:
        pixels = read_mask(job.mask, job.coding)
        label = reduce_label(job.coding.decode(job.mask, pixels), job.long_side)
        counts = np.bincount(label.ravel(), minlength=256)
    except (DataError, OSError) as error:
        problems.append(explain(error))
    if image is not None and pixels is not None:
        try:
            check_size(job.image, image, job.mask, pixels)
        except DataError as error:
            problems.append(explain(error))
    digest = (
        None if image is None else hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    )
    return Finding(problems, counts, digest)


def check_split(dataset: SegmentationDataset, num_workers: int, problems: list[str]) -> Split:
    """Read all samples of a split; problems are added to `problems`. Drawn data have none."""
    if not isinstance(dataset, FileDataset):
        counts = count_pixels(dataset, dataset.ids, 0, f"drawing {dataset.name} {dataset.split}")
        return Split(len(dataset.ids), dict(zip(dataset.ids, counts, strict=True)), {})
    check_libraries()
    jobs = [Job(image, mask, dataset.coding, dataset.long_side) for image, mask in dataset.samples.values()]
    description = f"checking {dataset.name} {dataset.split}"
    findings = dict(
        zip(dataset.ids, map_in_processes(check_sample, jobs, num_workers, description, "image"), strict=True)
    )
    problems += [problem for finding in findings.values() for problem in finding.problems]
    sound = {
        image_id: finding.pixels
        for image_id, finding in findings.items()
        if not finding.problems and finding.pixels is not None
    }
    digests = {i: finding.digest for i, finding in findings.items() if finding.digest is not None}
    return Split(len(jobs), sound, digests)


def find_duplicates(train: Split, val: Split) -> list[str]:
    """Name the images whose pixels are in both splits."""
    by_digest = {digest: image_id for image_id, digest in train.digests.items()}
    return [
        f"val image {image_id} has the same pixels as train image {by_digest[digest]}; remove one of them"
        for image_id, digest in val.digests.items()
        if digest in by_digest
    ]
