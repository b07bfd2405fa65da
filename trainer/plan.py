"""The plan of a run: everything that can be known before training, checked before training."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets import SegmentationDataset, ade20k, open_dataset, shapes, voc
from datasets.class_index import index_classes
from datasets.class_orders import VOC_CLASS_ORDERS
from datasets.files import check_libraries
from datasets.incremental import TrainSampler, select_training_images
from datasets.memory import select_memories
from datasets.selection import SETTINGS, select_images, split_holdout
from datasets.shapes import ShapesDataset
from datasets.tasks import Step, Task, build_task
from datasets.unreadable import Unreadable
from models import MODELS, SegmentationModel
from trainer.checkpoint import checkpoint_path, load_checkpoint, new_model, restore_model
from utils.config import Config, differing_fields, read_yaml, with_defaults
from utils.distributed import Worker, seed_everything

CLASSES = {"voc": voc.CLASSES, "ade20k": ade20k.CLASSES, "shapes": shapes.CLASSES}
"""Classes of the data sets that do not read them from a file."""


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, checked before it trains.

    image_ids: the training images of every step, its memory's last; memory_ids: those of them that are in memory,
    also where they serve the step itself; holdout_ids: those held out of them; split_sizes: images that every
    step would have, by setting; finished: the entries of results.json of finished steps; base_model: the model of step
    0 before its training, where that is still to come; left_out: what there is to say of images that cannot be read.
    """

    config: Config
    task: Task
    train: SegmentationDataset
    val: SegmentationDataset
    image_ids: tuple[tuple[str, ...], ...]
    memory_ids: tuple[tuple[str, ...], ...]
    holdout_ids: tuple[tuple[str, ...], ...]
    split_sizes: dict[str, list[int]]
    finished: list[dict[str, Any]]
    base_model: SegmentationModel | None
    left_out: tuple[str, ...] = ()

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

    def num_iterations(self, step: Step, worker: Worker) -> int:
        """Return the optimiser updates of a step, none in a base step that is taken over."""
        if step.index == 0 and self.config.init_from is not None:
            return 0
        return self.sampler(step, worker).num_iterations


def prepare(config: Config, worker: Worker) -> Plan:
    """Check config, machine, data and earlier results against each other, and return the plan of the run.

    Raises ValueError or OSError naming what is wrong; nothing has been written to the run's folder then.
    """
    check_config(config, worker)
    worker.main_only(lambda: check_run_dir(config))
    train, val = open_split(config, "train"), open_split(config, "val")
    task = build_task(config.task, train.classes, resolve_class_order(config))
    image_classes, left_out = worker.main_only(lambda: index_splits(config, train, val))
    selected = [
        split_holdout(
            select_training_images(image_classes, task, step, config.setting, config.data.train_on),
            config.val_fraction,
        )
        for step in task.steps
    ]
    check_selection(config, task, selected)
    split_sizes = {
        setting: [len(select_images(image_classes, task, step, setting)) for step in task.steps]
        for setting in SETTINGS
    }
    finished = worker.main_only(lambda: finished_steps(config, task))
    base_model = None
    if not worker.main_only(checkpoint_path(config.run_dir, 0).exists):
        if config.init_from is not None:
            worker.main_only(lambda: check_base(config, task))
        else:
            seed_everything(config.seed, 0)
            # One process fetches the weights and hands them to the others, its error included.
            base_model = worker.main_only(
                lambda: new_model(config, [task.steps[0].num_new], config.model.pretrained)
            )
    memories = choose_memories(config, task, image_classes, selected)
    return Plan(
        config=config,
        task=task,
        train=train,
        val=val,
        image_ids=tuple(
            (*(image_id for image_id in own if image_id not in memory), *memory)
            for (own, _), memory in zip(selected, memories, strict=True)
        ),
        memory_ids=tuple(map(tuple, memories)),
        holdout_ids=tuple(tuple(held_out) for _, held_out in selected),
        split_sizes=split_sizes,
        finished=finished,
        base_model=base_model,
        left_out=left_out,
    )


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


def check_selection(config: Config, task: Task, selected: list[tuple[list[str], list[str]]]) -> None:
    """Raise ValueError for a step that has nothing to train on."""
    for step, (ids, held_out) in zip(task.steps, selected, strict=True):
        if ids or (step.index == 0 and config.init_from is not None):
            continue
        where = f"step {step.index} ({', '.join(task.new_class_names(step))})"
        if held_out:
            raise ValueError(
                f"val_fraction: {config.val_fraction} holds out all {len(held_out)} training images of {where}; "
                "lower it, or set it to 0"
            )
        raise ValueError(
            f"task: {where} has no training image of {config.data.name} in setting '{config.setting}'; "
            "take other classes or another setting"
        )


def check_base(config: Config, task: Task) -> None:
    """Check that the checkpoint of `init_from` holds the classes of step 0 and fits the configured model.

    Raises FileNotFoundError or ValueError naming the file.
    """
    assert config.init_from is not None
    checkpoint = load_checkpoint(config.init_from)
    ours, theirs = list(task.class_names[: task.steps[0].num_new]), checkpoint["class_names"]
    if ours != theirs:
        raise ValueError(
            f"init_from: {config.init_from} knows the classes {', '.join(theirs)}, but step 0 of task {task.name} "
            f"learns {', '.join(ours)}; their names and order must agree"
        )
    model = with_defaults(checkpoint["config"])["model"]
    differing = differing_fields(
        config.model.model_dump(mode="json", exclude={"pretrained"}), {**model, "pretrained": None}
    )
    if differing:
        raise ValueError(
            f"init_from: {config.init_from} holds another model (model: {'; '.join(differing)}, there → here)"
        )
    kinds = [with_defaults(checkpoint["config"])["loss"]["cross_entropy"], config.loss.cross_entropy]
    if kinds.count("bce") == 1:
        raise ValueError(
            f"init_from: {config.init_from} was trained with loss.cross_entropy {kinds[0]}, this run is with "
            f"{kinds[1]}; bce needs a base step of its own, whose scores are sigmoids"
        )
    try:
        restore_model(config, checkpoint)
    except ValueError as error:
        raise ValueError(f"init_from: {config.init_from}: {error}") from error


def check_config(config: Config, worker: Worker) -> None:
    """Raise ValueError with a line for everything that is known to be wrong before data are opened."""
    problems = []
    try:
        check_parallelism(config, worker)
    except ValueError as error:
        problems.append(str(error))
    if config.data.name in CLASSES and (config.class_order is None or isinstance(config.task, str)):
        try:
            build_task(config.task, CLASSES[config.data.name], resolve_class_order(config))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def check_parallelism(config: Config, worker: Worker) -> None:
    """Raise ValueError where the batch cannot be cut as asked, or the device cannot do what the config wants."""
    train, ranks = config.train, worker.world_size
    problems = []
    if train.batch_size % (ranks * train.accumulate):
        problems.append(
            f"train.batch_size: {train.batch_size} is no multiple of {ranks} ranks × "
            f"{train.accumulate} accumulated micro-batches (train.accumulate)"
        )
    elif (
        train.batch_size == ranks * train.accumulate
        and not MODELS[config.model.name].trains_on_single_images
        and not synchronises_batch_norm(config, worker)
    ):
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

    Raises ValueError where its config may give other results or its last checkpoint is damaged,
    FileNotFoundError where a checkpoint is missing below a later one: what the later one was trained from would
    not be known.
    """
    # A step has at least one class, and masks of 8 bits know fewer than 256.
    saved = [step for step in range(256) if checkpoint_path(config.run_dir, step).exists()]
    if saved != list(range(len(saved))):
        missing = min(set(range(saved[-1])) - set(saved))
        raise FileNotFoundError(
            f"{checkpoint_path(config.run_dir, missing)}: the checkpoint is missing, but a later one is there "
            f"({checkpoint_path(config.run_dir, saved[-1]).name}); restore it, or delete the later ones and rerun"
        )
    # Read even where only its step could use it: a damaged one is better found before training than after.
    checkpoint = load_checkpoint(checkpoint_path(config.run_dir, saved[-1])) if saved else None
    path = config.run_dir / "config.yaml"
    if path.exists():
        theirs = read_yaml(path)
    elif checkpoint is not None:
        theirs = checkpoint["config"]
    else:
        return
    differing = differing_fields(config.model_dump(mode="json"), with_defaults(theirs))
    if differing:
        raise ValueError(
            f"{config.run_dir}: holds a run with another config ({'; '.join(differing)}, there → here); "
            "choose another --log, or undo the difference to continue that run"
        )


def finished_steps(config: Config, task: Task) -> list[dict[str, Any]]:
    """Return the entries of results.json whose checkpoints are there too; raises ValueError naming a bad file."""
    path = config.run_dir / "results.json"
    if not path.exists():
        return []
    try:
        entries = list(json.loads(path.read_text(encoding="utf-8"))["steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the results of a run ({type(error).__name__}: {error}); delete it, and the steps that have "
            "checkpoints are evaluated again"
        ) from error
    saved = [checkpoint_path(config.run_dir, step.index).exists() for step in task.steps]
    return entries[: saved.index(False)] if False in saved else entries


def synchronises_batch_norm(config: Config, worker: Worker) -> bool:
    """Whether BatchNorm statistics run over all ranks (only GPUs have the kernel)."""
    return config.train.sync_bn and worker.world_size > 1 and worker.device.type == "cuda"


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


def describe(plan: Plan, worker: Worker) -> str:
    """Return what a run would do: resolved config, steps, images, parameters, iterations, sizes of the splits."""
    config, task = plan.config, plan.task
    model = plan.base_model or new_model(config, [task.steps[0].num_new])
    lines = [
        config.to_yaml(),
        *plan.left_out,
        f"{'step':>4}  {'train':>6}  {'held out':>8}  {'val':>6}  {'iterations':>10}  {'parameters':>11}  new classes",
    ]
    for step in task.steps:
        if step.index > 0:
            model.grow(step.num_new, weight_transfer=False)
        num_parameters = sum(p.numel() for p in model.parameters())
        lines.append(
            f"{step.index:>4}  {len(plan.image_ids[step.index]):>6}  {len(plan.holdout_ids[step.index]):>8}  "
            f"{len(plan.val.ids):>6}  {plan.num_iterations(step, worker):>10}  {num_parameters:>11,}  "
            f"{', '.join(task.new_class_names(step))}"
        )
    lines += ["", "Images that show a class of each step, by setting:"]
    lines += [
        f"| {config.data.name} | {task.name} | {setting} | {', '.join(map(str, sizes))} |"
        for setting, sizes in plan.split_sizes.items()
    ]
    return "\n".join(lines)
