"""The images of a run's splits, by their ids: a run does not go on with others than it has begun with."""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from datasets.source import SegmentationDataset
from datasets.tasks import Task
from trainer.checkpoint import checkpoint_path
from trainer.config import Config


def ids_path(config: Config, split: str) -> Path:
    """Return the file of a run that lists the images of a split which it has begun with."""
    return config.run_dir / "image_ids" / f"{split}.txt"


def list_ids(dataset: SegmentationDataset) -> str:
    """Return the ids of a split as a text, a line each."""
    return "".join(f"{image_id}\n" for image_id in dataset.ids)


def check_images(config: Config, dataset: SegmentationDataset) -> None:
    """Raise ValueError where a run has begun with other images of a split, or in another order, than it has now."""
    difference = describe_other_images(config, dataset)
    if difference:
        raise ValueError(
            f"{difference}; bring back those of {ids_path(config, dataset.split)}, or choose another --log"
        )


def describe_finished(config: Config, task: Task, datasets: Sequence[SegmentationDataset]) -> tuple[str, ...]:
    """Return what is to be said of a finished run whose images are others now: its results are of those of then."""
    told = [line for dataset in datasets if (line := describe_other_images(config, dataset))]
    if not told:
        return ()
    finished = time.localtime((config.run_dir / "results.json").stat().st_mtime)
    last = checkpoint_path(config.run_dir, len(task.steps) - 1)
    classes = json.dumps([list(task.class_names[1:])], ensure_ascii=False)
    order = [] if config.class_order is None else ["--set", "class_order=null"]
    more = ["--log", f"{config.log}_more", "--set", f"init_from={last}", "--set", "continue_training=true"]
    return (
        *(f"warning: {line}" for line in told),
        f"warning: this run was finished on {time.strftime('%Y-%m-%d %H:%M', finished)} and is not trained again; the "
        f"results are those of then. To go on training its classes on the images of now, run the command with "
        f"`{shlex.join([*more, *order, '--set', f'task={classes}'])}`; to begin anew, choose another --log",
    )


def describe_other_images(config: Config, dataset: SegmentationDataset) -> str:
    """Return in what the images of a split differ from those that a run has begun with; '' where they do not."""
    path = ids_path(config, dataset.split)
    if not path.exists():
        return ""
    theirs = path.read_text(encoding="utf-8")
    if theirs == list_ids(dataset):
        return ""
    before, now = set(theirs.split("\n")) - {""}, set(dataset.ids)
    told = [
        f"{len(ids)} {what}, such as '{min(ids)}'"
        for ids, what in ((before - now, "are missing"), (now - before, "are new"))
        if ids
    ]
    field = f"{dataset.split}_ids"
    source = "data.val_root_old" if dataset.split == "val_old" else "data.root"
    if getattr(config.data, field, None):
        source = f"data.{field} ({getattr(config.data, field)})"
    return (
        f"{source}: the {dataset.split} images are not those that the run in {config.run_dir} has begun with: "
        f"{' and '.join(told) or 'they stand in another order'}"
    )
