"""What becomes of the samples that were found: their split, the classes and colours of all."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.class_list import IGNORE_NAME, MAX_CLASSES
from datasets.file_dataset import SPLITS
from tools.prepare.samples import Annotations, Sample
from utils.images import Colour


def split_samples(
    found: Mapping[str, Annotations], val_fraction: float, output: Path
) -> dict[str, list[Sample]]:
    """The samples of both splits; where the source has none, those whose hash is below the fraction are held out.

    The hash is the id's. What lies in `output` stays in its split; where that leaves none to hold out, the image of
    the smallest hash among the others is. Raises ValueError where a split is empty, or two images share an id.
    """
    splits = {split: annotations.samples for split, annotations in found.items()}
    if "val" not in splits:
        samples = splits["train"]
        kept = {path.stem: split for split in SPLITS for path in output.glob(f"images/{split}/*")}
        by_hash = {s.image_id: "val" if _position(s) < val_fraction else "train" for s in samples}
        split_of = {image_id: kept.get(image_id, split) for image_id, split in by_hash.items()}
        new = [sample for sample in samples if sample.image_id not in kept]
        if new and "val" not in split_of.values():
            split_of[min(new, key=_position).image_id] = "val"
        splits = {
            split: [sample for sample in samples if split_of[sample.image_id] == split] for split in SPLITS
        }
    first_of: dict[str, Path] = {}
    for split, samples in splits.items():
        if not samples:
            raise ValueError(f"no image for {split}; annotate more, or change --val-fraction")
        for sample in samples:
            other = first_of.setdefault(sample.image_id, sample.image)
            if other is not sample.image:
                raise ValueError(
                    f"{sample.image}: shares the id {sample.image_id!r} with {other}; rename one of them"
                )
    return splits


def _position(sample: Sample) -> float:
    """Where an id falls between 0 and 1."""
    return int.from_bytes(hashlib.sha1(f"val/{sample.image_id}".encode()).digest()[:6], "big") / 256**6


def choose_classes(
    found: Mapping[str, Annotations], wanted: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Class names in the order of their ids from 1 on, and the labels that are left out.

    Those that are `wanted` need not be among the labels. Raises ValueError where there are none, or too many.
    """
    labels = list(dict.fromkeys(label for annotations in found.values() for label in annotations.labels))
    classes = [name for name in dict.fromkeys(wanted or labels) if name != "background"]
    if not 0 < len(classes) < MAX_CLASSES:
        raise ValueError(
            f"found {len(classes)} classes besides background; allowed are 1 to {MAX_CLASSES - 1}: choose them with "
            "--classes"
        )
    return classes, [label for label in labels if label not in classes]


def find_colours(found: Mapping[str, Annotations], classes: Sequence[str]) -> list[Colour] | None:
    """The source's colours of background and classes; None unless every class has one of its own."""
    by_label = {"background": (0, 0, 0)}
    for annotations in found.values():
        by_label |= annotations.colours
    colours = [by_label[name] for name in ["background", *classes] if name in by_label]
    # Beside colours, 'ignore' would be no class.
    return colours if len(set(colours)) == len(classes) + 1 and IGNORE_NAME not in classes else None
