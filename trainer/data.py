"""The data of a run: its splits, class order, class index and memories."""

from collections.abc import Mapping, Sequence

import numpy as np

from datasets import DATASETS
from datasets.class_index import index_classes
from datasets.domains import build_domain_task, images_of_steps, is_domain_task, pool_splits
from datasets.file_dataset import FileDataset, check_libraries
from datasets.image_lists import ImageLists, read_image_lists
from datasets.memory import select_memories
from datasets.source import SegmentationDataset
from datasets.tasks import Task, build_task
from datasets.transforms import EvaluateTransform
from datasets.unreadable import Unreadable
from trainer.config import Config
from utils.errors import DataError, explain
from utils.labels import IGNORE_INDEX


def open_split(config: Config, split: str, problems: list[str] | None = None) -> SegmentationDataset:
    """Open the configured data set's 'train' or 'val' split; `problems`: as `Source.open` takes them.

    A task of domains takes its training and its validation images out of both splits.
    """
    source = DATASETS[config.data.name]
    if not is_domain_task(config.task) or source.domains is None:
        return source.open(config.data, split, problems)
    both = [source.open(config.data, name, problems) for name in ("train", "val")]
    assert isinstance(both[0], FileDataset)
    assert isinstance(both[1], FileDataset)
    return pool_splits(both[0], both[1], source.domains)[("train", "val").index(split)]


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


def make_task(config: Config, classes: Sequence[str]) -> Task:
    """Return the configured task over the classes of the data set; raises ValueError."""
    if is_domain_task(config.task):
        if config.class_order is not None:
            raise ValueError("class_order: a task of domains knows every class from step 0 on; leave it out")
        task = build_domain_task(str(config.task), classes, DATASETS[config.data.name].domains)
    else:
        task = build_task(config.task, classes, resolve_class_order(config))
    if config.evaluate.void_background and len(task.class_names) == IGNORE_INDEX:
        raise ValueError(
            "evaluate.void_background: takes a label of its own, and the task's 255 classes, background among them, "
            "leave none of 8 bits; set it to false, or leave a class out"
        )
    return task


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
    data, remarks = config.data, list[str]()
    for dataset in (val, train):
        remarks += dataset.remarks
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


def read_lists(
    config: Config, train: SegmentationDataset, task: Task, image_classes: Mapping[str, frozenset[int]]
) -> tuple[ImageLists | None, tuple[str, ...]]:
    """Return the lists of `data.image_lists`, None without any, and messages about them.

    Raises FileNotFoundError or DataError, the latter also where a list shows no class of its step.
    """
    folder, domains = config.data.image_lists, DATASETS[config.data.name].domains
    if task.domains and domains is not None:
        if folder is not None:
            raise ValueError(
                "data.image_lists: a task of domains gives every step the images of its domains; leave it out"
            )
        return ImageLists(images_of_steps(train.ids, task, domains), None), ()
    if folder is None:
        return None, ()
    lists = read_image_lists(folder, train, task, config.setting, needs_base=not config.takes_base)
    told = []
    for step, ids in zip(task.steps, lists.steps, strict=True):
        wanted = {task.class_ids[c] for c in step.new_classes if c > 0}
        without = [i for i in ids if not wanted & image_classes.get(i, wanted)]
        if ids and len(without) == len(ids):
            raise DataError(
                f"data.image_lists: {folder}: none of the {len(ids)} images of step {step.index} shows a class of it "
                f"({', '.join(task.new_class_names(step))}); take the lists of this task and class order"
            )
        if without:
            told.append(
                f"data.image_lists: {len(without)} of {len(ids)} images of step {step.index} show no class of it, such "
                f"as '{without[0]}'"
            )
    if lists.memories is not None and config.memory.size == 0:
        told.append(f"data.image_lists: {folder / 'memory.json'} is not used, as memory.size is 0")
    return lists, tuple(told)


def choose_memories(
    config: Config,
    task: Task,
    image_classes: Mapping[str, frozenset[int]],
    selected: list[tuple[list[str], list[str]]],
    lists: ImageLists | None = None,
) -> list[dict[str, None]]:
    """Return the ids in every step's memory, in order, without what the step holds out; lists: may state them.

    Raises ValueError where stated memories are larger than `memory.size`.
    """
    memory = config.memory
    if memory.size == 0:
        return [{} for _ in task.steps]
    own_ids = [ids for ids, _ in selected]
    if lists is not None and lists.memories is not None:
        memories = [[i for i in ids if i in image_classes] for ids in lists.memories]
        largest = max(map(len, memories))
        if largest > memory.size:
            raise ValueError(
                f"memory.size: {memory.size} is less than the {largest} images of a step in "
                f"{config.data.image_lists}/memory.json (data.image_lists); set it to {largest}"
            )
    else:
        memories = select_memories(
            image_classes, task, own_ids, size=memory.size, strategy=memory.strategy, seed=config.seed
        )
    held_out = [set(ids) for _, ids in selected]
    return [
        dict.fromkeys(image_id for image_id in ids if image_id not in held_out[step])
        for step, ids in enumerate(memories)
    ]
