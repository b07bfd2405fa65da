"""Which classes the validation masks label. What they do not label has no score there, and costs no other class any."""

from dataclasses import replace

from datasets import DATASETS
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset
from datasets.source import SegmentationDataset
from datasets.tasks import Task
from datasets.unreadable import Unreadable
from trainer.config import Config
from utils.errors import explain

OLD_ROOT = "data.val_root_old"


def find_unlabelled(config: Config, task: Task, val: SegmentationDataset) -> frozenset[int]:
    """Return the classes, by id in learning order, that the masks of `val` do not label.

    `evaluate.labelled` says which they label. Without it all are labelled, but in data whose files name the classes
    those that a mask shows. Raises ValueError for a name that is none of the task's.
    """
    labelled = config.evaluate.labelled
    if isinstance(labelled, list):
        unknown = [name for name in labelled if name not in task.class_names]
        if unknown:
            raise ValueError(
                f"evaluate.labelled: found {', '.join(unknown)}, but the task has the classes "
                f"{', '.join(task.class_names[1:])}; name some of these, or set it to all"
            )
        return frozenset(c for c, name in enumerate(task.class_names) if c > 0 and name not in labelled)
    if labelled == "all" or DATASETS[config.data.name].classes is not None:
        return frozenset()
    return find_absent(config, task, val)


def find_absent(config: Config, task: Task, val: SegmentationDataset) -> frozenset[int]:
    """Return the classes, by id in learning order, that no mask of `val` shows."""
    assert isinstance(val, FileDataset)
    data, cache = config.data, config.output_dir / "class_index"
    unreadable = Unreadable(data.on_error, data.max_skipped, len(val.ids), f"{val.name} {val.split}")
    index = index_classes(
        val, cache if cache.is_dir() else None, data.num_workers, progress=False, unreadable=unreadable
    )
    shown = frozenset[int]().union(*index.values())
    return frozenset(c for c, class_id in enumerate(task.class_ids) if c > 0 and class_id not in shown)


def open_old_split(config: Config, task: Task) -> tuple[Task, FileDataset] | None:
    """Return the validation images of `data.val_root_old`, and the task with the ids of its list of classes.

    None where the field is not set. Classes that its list lacks have an id that no mask holds. Raises ValueError or
    OSError naming the field.
    """
    root = getattr(config.data, "val_root_old", None)
    if root is None:
        return None
    options = config.data.model_copy(update={"root": root, "val_ids": None})
    try:
        val = DATASETS[config.data.name].open(options, "val", None)
    except (ValueError, OSError) as error:
        raise ValueError(f"{OLD_ROOT}: {explain(error)}") from error
    assert isinstance(val, FileDataset)
    known = set(val.classes[1:]) & set(task.class_names[1:])
    if not known:
        raise ValueError(
            f"{OLD_ROOT}: {root} has the classes {', '.join(val.classes[1:])}, of which task {task.name} has none "
            f"({', '.join(task.class_names[1:])}); names must agree"
        )
    ids = {name: class_id for class_id, name in enumerate(val.classes)}
    class_ids = (0, *(ids.get(name, len(val.classes)) for name in task.class_names[1:]))
    return replace(task, class_ids=class_ids), replace(val, split="val_old")


def describe_unlabelled(config: Config, task: Task, unlabelled: frozenset[int]) -> tuple[str, ...]:
    """Return a line that names what no validation mask labels, none where all is labelled."""
    if not unlabelled:
        return ()
    names = ", ".join(task.class_names[c] for c in sorted(unlabelled))
    remedy = ""
    if config.evaluate.labelled is None:
        remedy = (
            "; if they are labelled and only do not occur, set evaluate.labelled to all; to score them on other "
            f"images, name a folder that labels them in {OLD_ROOT}"
        )
    return (
        f"warning: no validation mask labels {names}: no IoU is given for them, and background that the model takes "
        f"for them is left out of the scores{remedy}",
    )
