"""List every problem of a data set before a long run.

Reads every image and mask of both splits. Exit code 0: nothing found; 2: problems, all of them printed.
"""

import argparse
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.class_index import map_in_processes
from datasets.file_dataset import FileDataset, check_libraries, check_size, read_sound_image
from datasets.incremental import select_training_images
from datasets.long_side import reduce_label
from datasets.masks import MaskCoding, read_mask
from datasets.source import SegmentationDataset
from datasets.tasks import IGNORE_INDEX, Task
from datasets.unreadable import explain
from trainer.config import Config, load_config
from trainer.data import make_task, open_split, read_lists
from utils.arguments import add_config, add_overwrite, fail, new_parser, to_path
from utils.errors import DataError
from utils.files import check_output, write_atomic

EXAMPLES = """
python -m tools.check_data --config configs/voc.yaml --json problems.json
python -m tools.check_data --config configs/voc.yaml --set data.root=/data/voc
"""


class Job(NamedTuple):
    """One sample to read."""

    image: Path
    mask: Path
    coding: MaskCoding
    long_side: int | None


class Finding(NamedTuple):
    """What a sample has shown: problems, data set ids (none where the mask is wrong), digest of the pixels."""

    problems: list[str]
    classes: frozenset[int]
    digest: str | None


class Split(NamedTuple):
    """One split as it was found: the classes that its sound samples show, and the digests of its images."""

    num_images: int
    image_classes: Mapping[str, frozenset[int]]
    digests: Mapping[str, str]


def check_sample(job: Job) -> Finding:
    """Read image and mask and collect everything that is wrong with them."""
    problems, image, pixels, classes = [], None, None, frozenset[int]()
    try:
        image = read_sound_image(job.image)
    except (DataError, OSError) as error:
        problems.append(explain(error))
    try:
        pixels = read_mask(job.mask, job.coding)
        label = reduce_label(job.coding.decode(job.mask, pixels), job.long_side)
        classes = frozenset(np.unique(label).tolist()) - {IGNORE_INDEX}
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
    return Finding(problems, classes, digest)


def check_split(dataset: FileDataset, num_workers: int, problems: list[str]) -> Split:
    """Read all samples of a split; problems are added to `problems`."""
    jobs = [Job(image, mask, dataset.coding, dataset.long_side) for image, mask in dataset.samples.values()]
    description = f"checking {dataset.name} {dataset.split}"
    findings = dict(
        zip(dataset.ids, map_in_processes(check_sample, jobs, num_workers, description, "image"), strict=True)
    )
    problems += [problem for finding in findings.values() for problem in finding.problems]
    sound = {image_id: finding.classes for image_id, finding in findings.items() if not finding.problems}
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


def find_gaps(
    task: Task, splits: Mapping[str, Split], config: Config, lists: Sequence[Collection[str]] | None
) -> list[str]:
    """Name the classes that no image shows and the steps that have no image, or fewer than a batch."""
    problems = []
    for name, split in splits.items():
        shown = frozenset().union(*split.image_classes.values())
        problems += [
            f"class {task.class_names[c]!r} (id {class_id}): no sound {name} image shows it"
            for c, class_id in enumerate(task.class_ids)
            if c > 0 and class_id not in shown
        ]
    classes = splits["train"].image_classes
    for step in task.steps:
        count = len(select_training_images(classes, task, step, config.setting, config.data.train_on, lists))
        if count < config.train.batch_size:
            names = ", ".join(task.new_class_names(step))
            problems.append(
                f"step {step.index} ({names}): {count} training images in setting '{config.setting}', fewer than "
                f"train.batch_size {config.train.batch_size}; "
                + ("they are repeated to fill a batch" if count else "training would refuse the task")
            )
    return problems


def check_data(config: Config) -> tuple[list[str], dict[str, int]]:
    """Return every problem of the configured data set, and how many images each split that opens has."""
    problems: list[str] = []
    datasets: dict[str, SegmentationDataset] = {}
    for name in ("train", "val"):
        try:
            datasets[name] = open_split(config, name, problems)
        except (ValueError, OSError) as error:
            problems.append(explain(error))
    splits: dict[str, Split] = {}
    for name, dataset in datasets.items():
        if isinstance(dataset, FileDataset):
            check_libraries()
            splits[name] = check_split(dataset, config.data.num_workers, problems)
        else:
            shown = {i: frozenset(np.unique(dataset.read_label(i)).tolist()) for i in dataset.ids}
            splits[name] = Split(len(dataset.ids), shown, {})
    if len(splits) == 2:
        problems += find_duplicates(splits["train"], splits["val"])
        try:
            task = make_task(config, datasets["train"].classes)
            lists, _ = read_lists(config, datasets["train"], task, splits["train"].image_classes)
        except (ValueError, OSError) as error:
            problems += str(error).splitlines()
        else:
            problems += find_gaps(task, splits, config, None if lists is None else lists.steps)
    return list(dict.fromkeys(problems)), {name: split.num_images for name, split in splits.items()}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.check_data", __doc__, EXAMPLES)
    what = parser.add_argument_group("input and output")
    add_config(what)
    what.add_argument("--json", type=to_path, metavar="FILE", help="write problems and counts there, too")
    add_overwrite(what)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.json is not None:
            check_output("--json", args.json, [args.config], args.overwrite)
        config = load_config(args.config, args.overrides)
        problems, counts = check_data(config)
        if args.json is not None:
            write_atomic(args.json, json.dumps({"problems": problems, "num_images": counts}, indent=2) + "\n")
    except (ValueError, OSError, ImportError) as error:
        fail(parser, error)
    for problem in problems:
        print(problem)
    images = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no"
    print(f"{config.data.name} {config.data.root}: {images} images, {len(problems) or 'no'} problems")
    return 2 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
