"""The plan of a run: everything that can be known before training, checked before training."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import yaml

from datasets import SegmentationDataset, open_dataset
from datasets.class_index import index_classes
from datasets.class_orders import VOC_CLASS_ORDERS
from datasets.incremental import TrainSampler, select_training_images
from datasets.shapes import ShapesDataset
from datasets.tasks import Step, Task, build_task
from models import DeepLabV3
from trainer.checkpoint import checkpoint_path, new_model
from utils.config import Config, differing_fields
from utils.distributed import Worker, seed_everything


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, checked before it trains. image_ids: the training images of every step."""

    config: Config
    task: Task
    train: SegmentationDataset
    val: SegmentationDataset
    image_ids: tuple[tuple[str, ...], ...]
    base_model: DeepLabV3 | None

    def sampler(self, step: Step, worker: Worker) -> TrainSampler:
        """Return the order in which a step's images are seen by one rank."""
        train = self.config.train
        incremental = train.num_epochs_incremental or train.num_epochs
        return TrainSampler(
            len(self.image_ids[step.index]),
            train.batch_size,
            train.num_epochs if step.index == 0 else incremental,
            seed=self.config.seed,
            step=step.index,
            rank=worker.rank,
            world_size=worker.world_size,
            accumulate=train.accumulate,
        )

    def num_classes(self, step: Step) -> list[int]:
        """Classes of each step up to `step`, background counted in the first."""
        return [earlier.num_new for earlier in self.task.steps[: step.index + 1]]


def prepare(config: Config, worker: Worker) -> Plan:
    """Check config, machine, data and earlier results against each other, and return the plan of the run.

    Raises ValueError or OSError naming what is wrong; nothing has been written to the run's folder then.
    """
    check_parallelism(config, worker)
    worker.main_only(lambda: check_run_dir(config))
    train, val = open_split(config, "train"), open_split(config, "val")
    task = build_task(config.task, train.classes, resolve_class_order(config))
    image_classes = worker.main_only(lambda: index_splits(config, train, val))
    image_ids = tuple(
        tuple(select_training_images(image_classes, task, step, config.setting, config.data.train_on))
        for step in task.steps
    )
    for step, ids in zip(task.steps, image_ids, strict=True):
        if not ids:
            raise ValueError(
                f"task: step {step.index} ({', '.join(task.new_class_names(step))}) has no training image of "
                f"{config.data.name} in setting '{config.setting}'; take other classes or another setting"
            )
    base_model = None
    if not checkpoint_path(config.run_dir, 0).exists():
        seed_everything(config.seed, 0)
        # One process fetches the weights and hands them to the others, its error included.
        base_model = worker.main_only(
            lambda: new_model(config, [task.steps[0].num_new], config.model.pretrained)
        )
    return Plan(config, task, train, val, image_ids, base_model)


def check_parallelism(config: Config, worker: Worker) -> None:
    """Raise ValueError where the batch cannot be cut as asked, or the device cannot do what the config wants."""
    train, ranks = config.train, worker.world_size
    problems = []
    if train.batch_size % (ranks * train.accumulate):
        problems.append(
            f"train.batch_size: {train.batch_size} is no multiple of {ranks} ranks × "
            f"{train.accumulate} accumulated micro-batches (train.accumulate)"
        )
    elif train.batch_size == ranks * train.accumulate:
        problems.append(
            f"train.batch_size: {train.batch_size} leaves one image to each of {ranks} ranks × {train.accumulate} "
            "micro-batches, and BatchNorm after image pooling needs two; raise it or lower train.accumulate"
        )
    if train.amp == "fp16" and worker.device.type == "cpu":
        problems.append("train.amp: fp16 needs a GPU; use bf16 or off on a CPU")
    if problems:
        raise ValueError("\n".join(problems))


def check_run_dir(config: Config) -> None:
    """Check what an earlier run of this name has left.

    Raises ValueError where its config may give other results, FileNotFoundError where a checkpoint is missing
    below a later one: what the later one was trained from would not be known.
    """
    # A step has at least one class, and masks of 8 bits know fewer than 256.
    saved = [step for step in range(256) if checkpoint_path(config.run_dir, step).exists()]
    if saved != list(range(len(saved))):
        missing = min(set(range(saved[-1])) - set(saved))
        raise FileNotFoundError(
            f"{checkpoint_path(config.run_dir, missing)}: the checkpoint is missing, but a later one is there "
            f"({checkpoint_path(config.run_dir, saved[-1]).name}); restore it, or delete the later ones and rerun"
        )
    path = config.run_dir / "config.yaml"
    if not path.exists():
        return
    theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
    differing = differing_fields(config.model_dump(mode="json"), theirs)
    if differing:
        raise ValueError(
            f"{config.run_dir}: holds a run with another config ({'; '.join(differing)}, there → here); "
            "choose another --log, or undo the difference to continue that run"
        )


def open_split(config: Config, split: str) -> SegmentationDataset:
    """Open the configured data set's 'train' or 'val' split."""
    data = config.data
    if data.name == "shapes":
        num_images = data.shapes.num_train if split == "train" else data.shapes.num_val
        return ShapesDataset(split, num_images, data.shapes.image_size, data.shapes.seed)
    return open_dataset(data.name, data.root, split)


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
) -> Mapping[str, frozenset[int]]:
    """Return the classes that every training image shows; the masks of both splits are checked on the way."""
    indices = [index_split(config, split) for split in (train, val)]
    return indices[0]


def index_split(config: Config, dataset: SegmentationDataset) -> dict[str, frozenset[int]]:
    if isinstance(dataset, ShapesDataset):
        return {i: frozenset(np.unique(dataset.read_label(i)).tolist()) for i in dataset.ids}
    return index_classes(dataset, config.output_dir / "class_index", max(1, config.data.num_workers))


def describe(plan: Plan, worker: Worker) -> str:
    """Return what a run would do: resolved config, steps, images, parameters and iterations."""
    config, task = plan.config, plan.task
    model = plan.base_model or new_model(config, [task.steps[0].num_new])
    lines = [
        config.to_yaml(),
        f"{'step':>4}  {'train':>6}  {'val':>6}  {'iterations':>10}  {'parameters':>11}  new classes",
    ]
    for step in task.steps:
        if step.index > 0:
            model.grow(step.num_new, weight_transfer=False)
        num_parameters = sum(p.numel() for p in model.parameters())
        lines.append(
            f"{step.index:>4}  {len(plan.image_ids[step.index]):>6}  {len(plan.val.ids):>6}  "
            f"{plan.sampler(step, worker).num_iterations:>10}  {num_parameters:>11,}  "
            f"{', '.join(task.new_class_names(step))}"
        )
    return "\n".join(lines)
