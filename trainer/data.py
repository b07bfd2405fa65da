"""The data of a run: its splits, class order, class index and memories."""

from collections.abc import Mapping

import numpy as np

from datasets import SegmentationDataset, ade20k, cityscapes, open_dataset, shapes, voc
from datasets.class_index import index_classes
from datasets.class_orders import VOC_CLASS_ORDERS
from datasets.file_dataset import check_libraries
from datasets.memory import select_memories
from datasets.shapes import ShapesDataset
from datasets.tasks import Task
from datasets.unreadable import Unreadable
from trainer.config import Config

CLASSES = {
    "voc": voc.CLASSES,
    "ade20k": ade20k.CLASSES,
    "cityscapes": cityscapes.CLASSES,
    "shapes": shapes.CLASSES,
}
"""Classes of the data sets that do not read them from a file."""


def open_split(config: Config, split: str, problems: list[str] | None = None) -> SegmentationDataset:
    """Open the configured data set's 'train' or 'val' split; `problems`: as `open_dataset` takes them."""
    data = config.data
    if data.name == "shapes":
        num_images = data.shapes.num_train if split == "train" else data.shapes.num_val
        return ShapesDataset(split, num_images, data.shapes.image_size, data.shapes.seed)
    return open_dataset(data.name, data.root, split, problems)


def resolve_class_order(config: Config) -> list[int] | None:
    """Return the class order as data set ids; raises ValueError for a name that is not known."""
    if not isinstance(config.class_order, str):
        return config.class_order
    if config.data.name != "voc" or config.class_order not in VOC_CLASS_ORDERS:
        known = f"{next(iter(VOC_CLASS_ORDERS))} … {list(VOC_CLASS_ORDERS)[-1]}"
        raise ValueError(
            f"class_order: no published order '{config.class_order}' for data.name {config.data.name}; "
            f"known for voc: {known}; otherwise list the ids"
        )
    return list(VOC_CLASS_ORDERS[config.class_order])


def index_splits(
    config: Config, train: SegmentationDataset, val: SegmentationDataset
) -> tuple[Mapping[str, frozenset[int]], tuple[str, ...]]:
    """Return the classes that every training image shows; the files of both splits are checked on the way.

    Second comes what there is to say of images that are left out, where data.on_error allows that.
    """
    if isinstance(train, ShapesDataset) or isinstance(val, ShapesDataset):
        return {i: frozenset(np.unique(train.read_label(i)).tolist()) for i in train.ids}, ()
    check_libraries()
    data, left_out = config.data, []
    for dataset in (val, train):
        where = f"{dataset.name} {dataset.split}"
        unreadable = Unreadable(data.on_error, data.max_skipped, len(dataset.ids), where)
        index = index_classes(
            dataset, config.output_dir / "class_index", data.num_workers, unreadable=unreadable
        )
        if unreadable.problems:
            left_out.append(unreadable.describe())
    return index, tuple(left_out)


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
