"""List every problem of a data set before a long run, and how much of it every class is.

Reads every image and mask of both splits, of a folder in data.val_root_old, too. Exit code 0: no problem, perhaps
warnings; 2: problems. All are printed, below the table of classes.
"""

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.file_dataset import FileDataset
from datasets.incremental import evaluation_table, select_training_images
from datasets.masks import remap
from datasets.source import SegmentationDataset
from datasets.tasks import Task
from datasets.unreadable import explain
from tools.checking.samples import Split, check_split, find_duplicates
from tools.checking.shares import RARE, ClassShare, as_json, class_shares, find_rare, format_shares, percent
from trainer.config import Config, load_config
from trainer.data import make_task, open_split, read_lists
from trainer.labelled import open_old_split
from utils.arguments import add_config, add_overwrite, fail, new_parser, to_path
from utils.files import check_output, write_atomic
from utils.report.data_page import PageSample, write_data_page

EXAMPLES = """
python -m tools.check_data --config configs/voc.yaml --json problems.json
python -m tools.check_data --config configs/voc.yaml --set data.root=/data/voc --html data.html
"""
SAMPLES_OF_A_CLASS = 2
MAX_SAMPLES = 60
"""Of a page: some MB."""


class Report(NamedTuple):
    """What was found: problems, which end with exit code 2, and warnings; images of every split that opens.

    task and what follows are None or empty where no task can be made: the training images of every step, the shares of
    the classes, and both splits as they were opened.
    """

    problems: list[str]
    warnings: list[str]
    num_images: dict[str, int]
    task: Task | None = None
    selected: Sequence[Sequence[str]] = ()
    shares: Sequence[ClassShare] = ()
    datasets: Mapping[str, SegmentationDataset] = {}
    splits: Mapping[str, Split] = {}


def check_data(config: Config) -> Report:
    """Read the configured data set and return all that is found."""
    problems: list[str] = []
    datasets: dict[str, SegmentationDataset] = {}
    for name in ("train", "val"):
        try:
            datasets[name] = open_split(config, name, problems)
        except (ValueError, OSError) as error:
            problems.append(explain(error))
    task = None
    if len(datasets) == 2:
        try:
            task = make_task(config, datasets["train"].classes)
            old = open_old_split(config, task)
            if old is not None:
                datasets["val_old"] = old[1]
        except (ValueError, OSError) as error:
            problems += str(error).splitlines()
    splits = {name: check_split(data, config.data.num_workers, problems) for name, data in datasets.items()}
    num_images = {name: split.num_images for name, split in splits.items()}
    if len(datasets) >= 2:
        problems += find_duplicates(splits["train"], splits["val"])
    lists = None
    if task is not None:
        try:
            lists, _ = read_lists(config, datasets["train"], task, splits["train"].image_classes)
        except (ValueError, OSError) as error:
            problems += str(error).splitlines()
            task = None
    if task is None:
        return Report(list(dict.fromkeys(problems)), [], num_images)
    classes, of_steps = splits["train"].image_classes, None if lists is None else lists.steps
    selected = [
        select_training_images(classes, task, step, config.setting, config.data.train_on, of_steps)
        for step in task.steps
    ]
    shares = class_shares(task, selected, splits["train"].pixels, splits["val"].pixels)
    remarks = [
        line
        for data in datasets.values()
        if isinstance(data, FileDataset)
        for line in data.remarks
        if line not in problems
    ]
    more, warnings = find_gaps(task, splits, config, selected)
    problems = list(dict.fromkeys([*problems, *more]))
    return Report(
        problems,
        [*remarks, *warnings, *find_rare(shares)],
        num_images,
        task,
        selected,
        shares,
        datasets,
        splits,
    )


def find_gaps(
    task: Task, splits: Mapping[str, Split], config: Config, selected: Sequence[Collection[str]]
) -> tuple[list[str], list[str]]:
    """Name the classes that no image shows, and the steps that have no image, or fewer than a batch.

    Second come those that are warnings. A step 0 that is taken over needs no images.
    """
    problems, warnings = [], []
    shown = {name: frozenset[int]().union(*split.image_classes.values()) for name, split in splits.items()}
    first_id = task.steps[0].num_new if config.takes_base else 1
    for c, class_id in enumerate(task.class_ids):
        named = f"class {task.class_names[c]!r} (id {class_id})"
        if c >= first_id and class_id not in shown["train"]:
            problems.append(f"{named}: no sound train image shows it")
        if c > 0 and class_id not in shown["val"] and "val_old" not in shown:
            warnings.append(f"{named}: no sound val image shows it; no score can come of it")
    for step, ids in zip(task.steps, selected, strict=True):
        if len(ids) >= config.train.batch_size or (step.index == 0 and config.takes_base):
            continue
        where = f"step {step.index} ({', '.join(task.new_names(step))})"
        told = f"{where}: {len(ids)} training images in setting '{config.setting}'"
        if ids:
            warnings.append(
                f"{told}, fewer than train.batch_size {config.train.batch_size}; an epoch is one iteration, for which "
                "they are repeated: see train.min_iterations"
            )
        else:
            problems.append(f"{told}; training would refuse the task")
    return problems, warnings


def choose_samples(report: Report) -> list[PageSample]:
    """Return images of both splits that show every class, SAMPLES_OF_A_CLASS of each, those with most of it first."""
    assert report.task is not None
    task, chosen = report.task, dict[tuple[str, str], None]()
    for class_id in task.class_ids[1:]:
        for name in ("train", "val"):
            pixels = report.splits[name].pixels
            by_size = sorted(pixels, key=lambda i: -int(pixels[i][class_id]))[:SAMPLES_OF_A_CLASS]
            chosen |= {(name, i): None for i in by_size if pixels[i][class_id]}
    table = evaluation_table(task, task.steps[-1], "ignore")
    samples = []
    for name, image_id in list(chosen)[:MAX_SAMPLES]:
        image, label = report.datasets[name].read(image_id)
        ids = remap(label, table)
        names = [task.class_names[c] for c in np.unique(ids) if 0 < c < len(task.class_names)]
        samples.append(PageSample(f"{name} {image_id}", ", ".join(names), image, ids))
    return samples


def write_page(path: Path, config: Config, report: Report, summary: str) -> None:
    """Write the page of a report that has a task."""
    assert report.task is not None
    palette = report.datasets["train"].palette
    colours = {
        name: palette[i] for name, i in zip(report.task.class_names, report.task.class_ids, strict=True)
    }
    rows = [
        {
            **share._asdict(),
            "train": percent(share.train_share),
            "val": percent(share.val_share),
            "is_rare": share.train_share is not None and 0 < share.train_share < RARE,
        }
        for share in report.shares
    ]
    messages = {"Problems": report.problems, "Warnings": report.warnings}
    write_data_page(
        path,
        f"{config.data.name} {config.data.root}",
        summary,
        messages,
        rows,
        colours,
        choose_samples(report),
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.check_data", __doc__, EXAMPLES)
    what = parser.add_argument_group("input and output")
    add_config(what)
    what.add_argument(
        "--json", type=to_path, metavar="FILE", help="write problems, counts and shares there, too"
    )
    what.add_argument(
        "--html", type=to_path, metavar="FILE", help="write a page with the table and samples of every class"
    )
    add_overwrite(what)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        for option, path in (("--json", args.json), ("--html", args.html)):
            if path is not None:
                check_output(option, path, [args.config], args.overwrite)
        config = load_config(args.config, args.overrides)
        report = check_data(config)
        counts = ", ".join(f"{count} {name}" for name, count in report.num_images.items()) or "no"
        told = f"{len(report.problems) or 'no'} problems"
        if report.warnings:
            told += f", {len(report.warnings)} warnings"
        summary = f"{config.data.name} {config.data.root}: {counts} images, {told}"
        if args.json is not None:
            steps = [] if report.task is None else as_json(report.task, report.shares, report.selected)
            found = {
                "problems": report.problems,
                "warnings": report.warnings,
                "num_images": report.num_images,
            }
            write_atomic(
                args.json, json.dumps({**found, "steps": steps}, indent=2, ensure_ascii=False) + "\n"
            )
        if args.html is not None and report.task is not None:
            write_page(args.html, config, report, summary)
    except (ValueError, OSError, ImportError) as error:
        fail(parser, error)
    if report.shares:
        print(format_shares(report.shares))
    for line in (*report.problems, *(f"warning: {warning}" for warning in report.warnings)):
        print(line)
    if args.html is not None and report.task is None:
        print(f"{args.html}: not written, as there is no task to show")
    print(summary)
    return 2 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
