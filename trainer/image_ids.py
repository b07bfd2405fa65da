"""The images of a run's splits: a run does not go on with others than it has begun with, and tells changed files."""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from datasets.file_dataset import FileDataset
from datasets.source import SegmentationDataset
from datasets.tasks import Task
from trainer.checkpoint import checkpoint_path
from trainer.config import Config
from utils.files import write_atomic


def ids_path(config: Config, split: str) -> Path:
    """Return the file of a run that lists the images of a split which it has begun with."""
    return config.run_dir / "image_ids" / f"{split}.txt"


def list_ids(dataset: SegmentationDataset) -> str:
    """Return the ids of a split as a text, a line each."""
    return "".join(f"{image_id}\n" for image_id in dataset.ids)


def bytes_path(config: Config, split: str) -> Path:
    """Return the file of a run that lists how large the files of a split were when it began."""
    return ids_path(config, split).with_name(f"{split}_bytes.txt")


def list_bytes(dataset: FileDataset) -> str:
    """Return the bytes of every sample's image and mask, and its id, as a text, a line each; 0 where there are none."""
    return "".join(
        f"{_count_bytes(image)} {_count_bytes(mask)} {image_id}\n"
        for image_id, (image, mask) in dataset.samples.items()
    )


def _count_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told where the file is read
        return 0


def keep_images(config: Config, dataset: SegmentationDataset) -> None:
    """Write what the images of a split are, where the run has not begun with any yet; raises SaveError."""
    path = ids_path(config, dataset.split)
    if not path.exists():
        write_atomic(path, list_ids(dataset))
    path = bytes_path(config, dataset.split)
    if isinstance(dataset, FileDataset) and not path.exists():
        write_atomic(path, list_bytes(dataset))


def check_images(config: Config, dataset: SegmentationDataset) -> None:
    """Raise ValueError where a run has begun with other images of a split, or in another order, than it has now."""
    difference = describe_other_images(config, dataset)
    if difference:
        raise ValueError(
            f"{difference}; bring back those of {ids_path(config, dataset.split)}, or choose another --log"
        )


def describe_finished(config: Config, task: Task, datasets: Sequence[SegmentationDataset]) -> tuple[str, ...]:
    """Return what is to be said of a finished run whose images are others now: its results are of those of then."""
    told = [
        line
        for dataset in datasets
        if (line := describe_other_images(config, dataset) or describe_other_files(config, dataset))
    ]
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


def describe_changed(config: Config, datasets: Sequence[SegmentationDataset]) -> tuple[str, ...]:
    """Return what is to be said of an unfinished run of whose images some files have changed."""
    told = [line for dataset in datasets if (line := describe_other_files(config, dataset))]
    return tuple(f"warning: {line}; what was trained and scored before saw those of then" for line in told)


def describe_other_files(config: Config, dataset: SegmentationDataset) -> str:
    """Return which files of a split have another size than when the run began; '' where none has.

    Sizes stay where files are copied, unlike times; a mask that is corrected rarely keeps its own.
    """
    path = bytes_path(config, dataset.split)
    if not isinstance(dataset, FileDataset) or not path.exists():
        return ""
    before, now = _parse_bytes(path.read_text(encoding="utf-8")), _parse_bytes(list_bytes(dataset))
    changed = [image_id for image_id in now if before.get(image_id, now[image_id]) != now[image_id]]
    if not changed:
        return ""
    first = changed[0]
    pairs = zip(("image", "mask"), before[first], now[first], strict=True)
    what = " and ".join(name for name, then, size in pairs if then != size)
    return (
        f"{_place(config, dataset.split)}: the files of {len(changed)} of {len(now)} {dataset.split} samples have "
        f"changed since the run in {config.run_dir} began, such as the {what} of '{first}'"
    )


def _parse_bytes(text: str) -> dict[str, tuple[str, str]]:
    """Image id → bytes of image and mask, of the lines of `list_bytes`."""
    lines = (line.split(" ", 2) for line in text.split("\n")[:-1])
    return {image_id: (image, mask) for image, mask, image_id in lines}


def _place(config: Config, split: str) -> str:
    """Return the field of the folder in which the files of a split lie."""
    return "data.val_root_old" if split == "val_old" else "data.root"


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
    source = _place(config, dataset.split)
    if getattr(config.data, field, None):
        source = f"data.{field} ({getattr(config.data, field)})"
    return (
        f"{source}: the {dataset.split} images are not those that the run in {config.run_dir} has begun with: "
        f"{' and '.join(told) or 'they stand in another order'}"
    )
