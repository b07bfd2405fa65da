"""What becomes of the samples that were found: their ids and splits, the classes and colours of all."""

import difflib
import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.class_list import IGNORE_NAME, MAX_CLASSES
from datasets.folder import IMAGE_SUFFIXES
from datasets.listing import SPLITS
from tools.prepare.checked import clean_name, repeated
from tools.prepare.files import list_below
from tools.prepare.samples import RESERVED, Annotations, Sample, count_names, reserved_id
from utils.images import Colour


def name_samples(found: Mapping[str, Annotations]) -> tuple[dict[str, list[Sample]], list[str]]:
    """The samples of every split, each with an id of its own, and what is to be said of the ids.

    Where splits repeat ids (each has its own numbering), those of both are prefixed by their split. Images that share
    an id in a split, and those that are in both, have a problem more.
    """
    splits = {split: annotations.samples for split, annotations in found.items()}
    shared = set.intersection(*({s.image_id for s in samples} for samples in splits.values()))
    notes = []
    if len(splits) > 1 and shared:
        notes.append(f"ids are prefixed by their split, as both have {count_names(sorted(shared))}")
        splits = {
            split: [sample._replace(image_id=f"{split}_{sample.image_id}") for sample in samples]
            for split, samples in splits.items()
        }
    drawn = [
        (split, sample) for split, samples in splits.items() for sample in samples if sample.draw is not None
    ]
    by_id, by_file = defaultdict(list), defaultdict(list)
    for split, sample in drawn:
        by_id[sample.image_id].append(sample)
        by_file[sample.image.resolve()].append((split, sample))

    def problems_of(sample: Sample) -> tuple[str, ...]:
        if sample.draw is None:
            return sample.problems
        problems, same_file = [*sample.problems], by_file[sample.image.resolve()]
        others = [other for other in by_id[sample.image_id] if other.image != sample.image]
        if others:
            problems.append(
                f"{sample.image}: shares the id {sample.image_id!r} with {others[0].image}; rename one of them"
            )
        if len({split for split, _ in same_file}) > 1:
            problems.append(f"{sample.image}: is in train and in val; leave it out of one")
        elif len(same_file) > 1:
            other = next(other for _, other in same_file if other is not sample)
            also = "twice" if other.sources == sample.sources else f"as {other.sources[-1]} does"
            problems.append(
                f"{sample.sources[-1]}: names the image {sample.image}, {also}; annotate an image once"
            )
        return (*problems,)

    named = {
        split: [sample._replace(problems=problems_of(sample)) for sample in samples]
        for split, samples in splits.items()
    }
    return named, notes


def split_samples(
    named: Mapping[str, list[Sample]], val_fraction: float | None, output: Path
) -> dict[str, list[Sample]]:
    """The samples of both splits; where the source has no val, a share of its images is held out.

    That are fraction × images, rounded, one at least, and no more than leave one to train: those of the smallest hashes
    of their ids. What lies in `output` stays in its split. The others fill val up to the share: where too many are held
    out already, none of them is. Raises ValueError where a split is empty.
    """
    splits = dict(named)
    if "val" not in splits:
        samples = splits["train"]
        kept = {path.stem: split for split in SPLITS for path in output.glob(f"images/{split}/*")}
        held_out = {s.image_id for s in samples if kept.get(s.image_id) == "val"}
        new = sorted((s for s in samples if s.image_id not in kept), key=_position)
        wanted = min(max(1, math.floor((val_fraction or 0.0) * len(samples) + 0.5)), len(samples) - 1)
        held_out |= {sample.image_id for sample in new[: max(0, wanted - len(held_out))]}
        splits = {
            "train": [sample for sample in samples if sample.image_id not in held_out],
            "val": [sample for sample in samples if sample.image_id in held_out],
        }
    for split, samples in splits.items():
        if not samples:
            raise ValueError(f"no image for {split}; annotate more, or change --val-fraction")
    return splits


def _position(sample: Sample) -> bytes:
    """Where an id falls in an order that has nothing to do with its name."""
    return hashlib.sha1(f"val/{sample.image_id}".encode()).digest()


class Classes(NamedTuple):
    """Class names in the order of their ids from 1 on, and what is to be said of them and of other labels."""

    names: list[str]
    notes: list[str]


def choose_classes(found: Mapping[str, Annotations], wanted: Sequence[str] | None) -> Classes:
    """The labels that become classes: those `wanted`, which need not all be among them, or else all.

    Raises ValueError where there are none, or too many, or where names given are no names, are there twice, or match
    no label at all.
    """
    labels = list(dict.fromkeys(label for annotations in found.values() for label in annotations.labels))
    notes = [
        f"label {label!r} is background, as 'background' is"
        for label in labels
        if reserved_id(label) is not None and label not in RESERVED
    ]
    labels = [label for label in labels if reserved_id(label) is None]
    names = labels if wanted is None else _clean_wanted(wanted)
    if not 0 < len(names) < MAX_CLASSES:
        raise ValueError(
            f"found {len(names)} classes besides background; allowed are 1 to {MAX_CLASSES - 1}: choose them with "
            "--classes"
        )
    absent = [name for name in names if name not in labels]
    if labels and len(absent) == len(names):
        raise ValueError(f"--classes: no label is called {', '.join(absent)}; found are {', '.join(labels)}")
    for name in absent:
        close = difflib.get_close_matches(name, labels, 1, 0.8)
        notes.append(f"no label is called {name!r}" + (f"; one is called {close[0]!r}" if close else ""))
    by_case = defaultdict(list)
    for label in labels:
        by_case[label.casefold()].append(label)
    notes += [
        f"labels that differ in capitals only are classes of their own: {', '.join(several)}"
        for several in by_case.values()
        if len(several) > 1
    ]
    left_out = [label for label in labels if label not in names]
    return Classes(
        names, [*notes, *([f"labels left out (background): {', '.join(left_out)}"] if left_out else [])]
    )


def _clean_wanted(wanted: Sequence[str]) -> list[str]:
    names = []
    for name in wanted:
        try:
            names.append(clean_name(name))
        except ValueError as error:
            raise ValueError(f"--classes: found {name!r}; {error}") from error
    twice = repeated(names)
    if twice:
        raise ValueError(f"--classes: found {twice[0]!r} twice; give every class once")
    return [name for name in names if reserved_id(name) is None]


def find_colours(found: Mapping[str, Annotations], classes: Sequence[str]) -> list[Colour] | None:
    """The source's colours of background and classes; None unless every class has one of its own."""
    by_label = {"background": (0, 0, 0)}
    for annotations in found.values():
        by_label |= annotations.colours
    by_label["background"] = (0, 0, 0)
    colours = [by_label[name] for name in ["background", *classes] if name in by_label]
    # Beside colours, 'ignore' would be no class.
    return colours if len(set(colours)) == len(classes) + 1 and IGNORE_NAME not in classes else None


def find_unused(found: Mapping[str, Annotations], output: Path) -> list[str]:
    """What is to be said of images that lie where a source's images do, and that no annotation names."""
    used = {
        path.resolve()
        for annotations in found.values()
        for sample in annotations.samples
        for path in (sample.image, *sample.sources)
    }
    folders = dict.fromkeys(annotations.folder for annotations in found.values())
    unused = {
        path.resolve(): path
        for folder in folders
        for path in list_below(folder, IMAGE_SUFFIXES, {output.resolve()})
        if path.resolve() not in used
    }
    names = sorted(path.name for path in unused.values())
    return [f"left out, as no annotation names them: {count_names(names)}"] if names else []
