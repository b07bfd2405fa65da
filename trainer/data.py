"""The data of a run: its splits, class order, class index and memories."""

from collections.abc import Mapping

import numpy as np

from datasets import DATASETS
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset, check_libraries
from datasets.memory import select_memories
from datasets.source import SegmentationDataset
from datasets.tasks import IGNORE_INDEX, Task
from datasets.transforms import EvaluateTransform
from datasets.unreadable import Unreadable
from trainer.config import Config
from utils.errors import explain


def open_split(config: Config, split: str, problems: list[str] | None = None) -> SegmentationDataset:
    """Open the configured data set's 'train' or 'val' split; `problems`: as `Source.open` takes them."""
    return DATASETS[config.data.name].open(config.data, split, problems)


def open_splits(config: Config) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Open both splits, training first; raises ValueError or OSError, of both where both are wrong."""
    opened, errors = [], []
    for split in ("train", "val"):
        try:
            opened.append(open_split(config, split))
        except (ValueError, OSError) as error:
            errors.append(error)
    told = list(dict.fromkeys(explain(error) for error in errors))
    if len(told) > 1:
        raise ValueError("\n".join(told))
    if errors:
        raise errors[0]
    return opened[0], opened[1]


def evaluate_transform(config: Config) -> EvaluateTransform:
    """Return what evaluation does to image and label."""
    return EvaluateTransform(config.train.crop_size, config.evaluate.mode, config.evaluate.short_side)


def resolve_class_order(config: Config) -> list[int] | None:
    """Return the class order as data set ids; raises ValueError for a name that is not known."""
    if not isinstance(config.class_order, str):
        return config.class_order
    orders = DATASETS[config.data.name].class_orders
    if config.class_order not in orders:
        known = [
            f"known for {name}: {next(iter(source.class_orders))} … {list(source.class_orders)[-1]}"
            for name, source in DATASETS.items()
            if source.class_orders
        ]
        raise ValueError(
            f"class_order: no published order '{config.class_order}' for data.name {config.data.name}; "
            f"{'; '.join(known)}; otherwise list the ids"
        )
    return list(orders[config.class_order])


def index_splits(
    config: Config, train: SegmentationDataset, val: SegmentationDataset
) -> tuple[Mapping[str, frozenset[int]], tuple[str, ...]]:
    """Return the classes that every training image shows, and remarks, such as about images that are left out.

    The files of both splits are checked on the way. Images are left out where `data.on_error` is skip; otherwise raises
    DataError naming them.
    """
    if not (isinstance(train, FileDataset) and isinstance(val, FileDataset)):
        return {i: frozenset(np.unique(train.read_label(i)).tolist()) for i in train.ids}, ()
    check_libraries()
    data, remarks = config.data, []
    for dataset in (val, train):
        where = f"{dataset.name} {dataset.split}"
        unreadable = Unreadable(data.on_error, data.max_skipped, len(dataset.ids), where)
        index = index_classes(
            dataset, config.output_dir / "class_index", data.num_workers, unreadable=unreadable
        )
        if unreadable.problems:
            remarks.append(unreadable.describe())
        if not any(index.values()):
            remarks.append(
                f"{where}: every pixel of every mask is {IGNORE_INDEX}, ignored; no score can come of it"
            )
    return index, tuple(remarks)


def choose_memories(
    config: Config,
    task: Task,
    image_classes: Mapping[str, frozenset[int]],
    selected: list[tuple[list[str], list[str]]],
) -> list[dict[str, None]]:
    """Return the ids in every step's memory, in order, without what the step holds out."""
    memory = config.memory
    if memory.size == 0:
        return [{} for _ in task.steps]
    own_ids = [ids for ids, _ in selected]
    memories = select_memories(
        image_classes, task, own_ids, size=memory.size, strategy=memory.strategy, seed=config.seed
    )
    held_out = [set(ids) for _, ids in selected]
    return [
        dict.fromkeys(image_id for image_id in ids if image_id not in held_out[step])
        for step, ids in enumerate(memories)
    ]
