"""The plan of a run: everything that can be known before training, checked before training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datasets import DATASETS
from datasets.domains import images_of_steps
from datasets.file_dataset import FileDataset, check_libraries
from datasets.incremental import ValidationDataset, evaluation_table, select_training_images
from datasets.rare import repeat_images
from datasets.selection import SETTINGS, select_images, split_holdout
from datasets.source import SegmentationDataset
from datasets.tasks import Step, Task
from methods import method_of_step
from trainer.checkpoint import checkpoint_path, new_model
from trainer.checks import (
    check_base,
    check_classes,
    check_config,
    check_rare,
    check_run_dir,
    check_selection,
    finished_steps,
)
from trainer.config import Config
from trainer.data import (
    choose_memories,
    evaluate_transform,
    index_splits,
    make_task,
    open_split,
    open_splits,
    read_lists,
)
from trainer.image_ids import check_images, describe_changed, describe_finished
from trainer.labelled import describe_unlabelled, find_absent, find_unlabelled, open_old_split
from trainer.network import Network, network_of_base, new_network
from trainer.palette import base_palette, choose_palette
from trainer.sampling import TrainSampler
from utils.distributed import Worker, seed_everything
from utils.images import Colour
from utils.labels import IGNORE_INDEX

FEW_ITERATIONS = 200
"""Of a step: fewer are told before they are trained, and where they have taught nothing."""


@dataclass(frozen=True)
class Evaluation:
    """What steps are evaluated on: the validation split, and the config and the task that say how.

    unlabelled: the classes, by id in learning order, that its masks do not label. old: other images that label some of
    these (`data.val_root_old`).
    """

    config: Config
    task: Task
    val: SegmentationDataset
    unlabelled: frozenset[int] = frozenset()
    old: "Evaluation | None" = None

    @property
    def parts(self) -> "tuple[Evaluation, ...]":
        """What is evaluated one after the other: this, and the other images."""
        return (self,) if self.old is None else (self, self.old)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of all validation images, those of the other images as old/ID."""
        return (*self.val.ids, *(f"old/{image_id}" for part in self.parts[1:] for image_id in part.val.ids))

    @property
    def without_label(self) -> frozenset[int]:
        """The classes that no validation mask labels."""
        return frozenset.intersection(*(part.unlabelled for part in self.parts))

    @property
    def voids_background(self) -> bool:
        """Whether pixels of the data set's id 0 are ignored."""
        chosen = self.config.evaluate.void_background
        return self.val.background_is_void if chosen is None else chosen

    def dataset(
        self, image_ids: Sequence[str], step: Step, background: int | None = None
    ) -> ValidationDataset:
        """Return validation images, labelled for a step; background: label of the data set's id 0, None as scored."""
        config = self.config
        if background is None:
            background = IGNORE_INDEX if self.voids_background else 0
        table = evaluation_table(self.task, step, config.evaluate.future, background)
        return ValidationDataset(self.val, image_ids, table, evaluate_transform(config))

    def so_far(self, step: Step) -> "Evaluation":
        """Return what a step is scored on: all of it, in a task of domains the images of the domains so far."""
        domains = DATASETS[self.config.data.name].domains
        if not self.task.domains or domains is None or not isinstance(self.val, FileDataset):
            return self
        groups = images_of_steps(self.val.ids, self.task, domains)[: step.index + 1]
        ids = {image_id for group in groups for image_id in group}
        samples = {i: files for i, files in self.val.samples.items() if i in ids}
        return replace(self, val=replace(self.val, samples=samples))


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, checked before it trains.

    image_ids: the training images of every step, its memory's last; evaluation: what the steps are evaluated on;
    palette: the classes' colours, in learning order; memory_ids: the training images that are in memory, also where
    they serve the step itself; holdout_ids: those held out of them; split_sizes: images that every step would have, by
    setting; finished: the entries of results.json of finished steps; base_network: holds what step 0 trains, as it
    starts, where that is still to come, and is empty once step 0 has taken it; remarks: what is unusual about the data
    and the task, such as images that cannot be read; repeats: how often an epoch of every step shows each image, ()
    where that is once.
    """

    config: Config
    task: Task
    train: SegmentationDataset
    val: SegmentationDataset
    image_ids: tuple[tuple[str, ...], ...]
    evaluation: Evaluation
    palette: tuple[Colour, ...]
    memory_ids: tuple[tuple[str, ...], ...]
    holdout_ids: tuple[tuple[str, ...], ...]
    split_sizes: dict[str, list[int]]
    finished: list[dict[str, Any]]
    base_network: list[Network]
    remarks: tuple[str, ...] = ()
    repeats: tuple[tuple[int, ...], ...] = ()

    def sampler(self, step: Step, worker: Worker, num_epochs: int | None = None) -> TrainSampler:
        """Return the order in which a step's images are seen by one rank; num_epochs: None for the config's."""
        train = self.config.train
        incremental = train.num_epochs_incremental or train.num_epochs
        repeats = self.repeats[step.index] if self.repeats else None
        num_images = sum(repeats) if repeats else len(self.image_ids[step.index])
        return TrainSampler(
            len(self.image_ids[step.index]),
            train.batch_size,
            num_epochs
            or max(
                train.num_epochs if step.index == 0 else incremental,
                math.ceil(train.min_iterations / max(1, num_images // train.batch_size)),
            ),
            seed=self.config.seed,
            step=step.index,
            rank=worker.rank,
            world_size=worker.world_size,
            accumulate=train.accumulate,
            repeats=repeats,
        )

    def num_iterations(self, step: Step, worker: Worker) -> int:
        """Return the optimiser updates of a step; none in one that is taken over or solved."""
        if step.index == 0 and self.config.takes_base:
            return 0
        if not method_of_step(self.config.method, step.num_old, step.num_new).trains:
            return 0
        return self.sampler(step, worker).num_iterations

    def first_iteration(self, step: Step, worker: Worker) -> int:
        """Return the optimiser updates of all earlier steps."""
        return sum(self.num_iterations(earlier, worker) for earlier in self.task.steps[: step.index])


def prepare(config: Config, worker: Worker) -> Plan:
    """Check config, machine, data and earlier results against each other, and return the plan of the run.

    Raises ValueError or OSError naming what is wrong; nothing has been written to the run's folder then.
    """
    check_config(config, worker)
    saved = worker.main_only(lambda: check_run_dir(config))
    train, val = open_splits(config)
    task = make_task(config, train.classes)
    palette = choose_palette(
        [train.palette[i] for i in task.class_ids],
        worker.main_only(lambda: base_palette(config, task, saved)),
    )
    worker.main_only(lambda: check_classes(config, task, train, palette, saved))
    image_classes, remarks = worker.main_only(lambda: index_splits(config, train, val))
    evaluation = open_scored(config, task, val, worker)
    lists, told = read_lists(config, train, task, image_classes)
    of_steps = None if lists is None else lists.steps
    selected = [
        split_holdout(
            select_training_images(image_classes, task, step, config.setting, config.data.train_on, of_steps),
            config.val_fraction,
        )
        for step in task.steps
    ]
    check_selection(config, task, selected)
    check_rare(config, task)
    split_sizes = {
        setting: [len(select_images(image_classes, task, step, setting)) for step in task.steps]
        for setting in (() if task.domains else SETTINGS)
    }
    finished = worker.main_only(lambda: finished_steps(config, task))
    parts = [part.val for part in evaluation.parts]
    if len(finished) < len(task.steps):
        for dataset in (train, *parts):
            worker.main_only(partial(check_images, config, dataset))
        told += worker.main_only(lambda: describe_changed(config, [train, *parts]))
    else:
        told += worker.main_only(lambda: describe_finished(config, task, [train, *parts]))
    base_network, num_future = [], task.num_future(task.steps[0])
    if not worker.main_only(checkpoint_path(config.run_dir, 0).exists):
        if config.init_from is not None:
            worker.main_only(lambda: check_base(config, task, len(selected[0][0])))
        if config.continue_training:
            base_network = [worker.main_only(lambda: network_of_base(config, num_future))]
        elif config.init_from is None:
            seed_everything(config.seed, 0)
            # One process fetches the weights and hands them to the others, its error included.
            base_network = [
                worker.main_only(
                    lambda: new_network(
                        config,
                        new_model(config, [task.steps[0].num_new], config.model.pretrained),
                        num_future,
                    )
                )
            ]
    memories = choose_memories(config, task, image_classes, selected, lists)
    plan = Plan(
        config=config,
        task=task,
        train=train,
        val=val,
        image_ids=tuple(
            (*(image_id for image_id in own if image_id not in memory), *memory)
            for (own, _), memory in zip(selected, memories, strict=True)
        ),
        evaluation=evaluation,
        palette=palette,
        memory_ids=tuple(map(tuple, memories)),
        holdout_ids=tuple(tuple(held_out) for _, held_out in selected),
        split_sizes=split_sizes,
        finished=finished,
        base_network=base_network,
        remarks=(
            *remarks,
            *told,
            *task.remarks,
            *describe_unlabelled(config, task, evaluation.without_label),
        ),
    )
    if config.rare.oversample:
        plan = replace(plan, repeats=repeat_rare(plan, image_classes))
    return replace(
        plan, remarks=(*plan.remarks, *describe_repeats(plan), *describe_short_steps(plan, worker))
    )


def repeat_rare(plan: Plan, image_classes: Mapping[str, frozenset[int]]) -> tuple[tuple[int, ...], ...]:
    """Return how often an epoch of every step shows each image (`rare.oversample`)."""
    config, task = plan.config, plan.task
    labelled = [task.labelled_classes(step, config.data.train_on) for step in task.steps]
    return tuple(
        (
            *repeat_images(
                image_classes, ids, [task.class_ids[c] for c in classes if c > 0], config.rare.oversample
            ),
        )
        for ids, classes in zip(plan.image_ids, labelled, strict=True)
    )


def describe_repeats(plan: Plan) -> list[str]:
    """Return a line for every step of which some images are shown more often."""
    return [
        f"rare.oversample: an epoch of step {index} shows {len(counts)} images {sum(counts)} times, "
        f"{sum(count > 1 for count in counts)} of them more than once"
        for index, counts in enumerate(plan.repeats)
        if max(counts, default=0) > 1
    ]


def describe_short_steps(plan: Plan, worker: Worker) -> list[str]:
    """Return a line for every step of one iteration an epoch and few in all, where no minimum of them is set."""
    train, told = plan.config.train, []
    for step in plan.task.steps:
        count = plan.num_iterations(step, worker)
        if (
            0 < count < FEW_ITERATIONS
            and count == plan.sampler(step, worker).num_epochs
            and not train.min_iterations
        ):
            told.append(
                f"warning: step {step.index} ({', '.join(plan.task.new_names(step))}) has "
                f"{len(plan.image_ids[step.index])} images: at train.batch_size {train.batch_size} an epoch is one "
                f"iteration, the step has {count}; set train.min_iterations, such as 300, for more"
            )
    return told


def open_scored(config: Config, task: Task, val: SegmentationDataset, worker: Worker) -> Evaluation:
    """Return what steps are evaluated on, with what its masks do not label; raises ValueError or OSError."""
    old = open_old_split(config, task)
    other = None
    if old is not None:
        absent = worker.main_only(lambda: find_absent(config, *old))
        other = Evaluation(config, *old, absent)
    return Evaluation(config, task, val, worker.main_only(lambda: find_unlabelled(config, task, val)), other)


def open_evaluation(config: Config, worker: Worker) -> Evaluation:
    """Return what a checkpoint is evaluated on by itself, without a run and without its training images.

    Raises ValueError or OSError naming what is wrong.
    """
    val = open_split(config, "val")
    if isinstance(val, FileDataset):
        check_libraries()
    return open_scored(config, make_task(config, val.classes), val, worker)


def describe(plan: Plan, worker: Worker) -> str:
    """Return what a run would do: resolved config, steps, images, parameters, iterations, sizes of the splits."""
    config, task = plan.config, plan.task
    model = plan.base_network[0].model if plan.base_network else new_model(config, [task.steps[0].num_new])
    lines = [
        config.to_yaml(),
        *plan.remarks,
        f"{'step':>4}  {'train':>6}  {'held out':>8}  {'val':>6}  {'iterations':>10}  {'parameters':>11}  "
        f"new {'domains' if task.domains else 'classes'}",
    ]
    for step in task.steps:
        if step.index > 0 and step.num_new:
            model.grow(step.num_new)
        num_parameters = sum(p.numel() for p in model.parameters())
        lines.append(
            f"{step.index:>4}  {len(plan.image_ids[step.index]):>6}  {len(plan.holdout_ids[step.index]):>8}  "
            f"{len(plan.val.ids):>6}  {plan.num_iterations(step, worker):>10}  {num_parameters:>11,}  "
            f"{', '.join(task.new_names(step))}"
        )
    lines += ["", "Images that show a class of each step, by setting:"] if plan.split_sizes else []
    lines += [
        f"| {config.data.name} | {task.name} | {setting} | {', '.join(map(str, sizes))} |"
        for setting, sizes in plan.split_sizes.items()
    ]
    return "\n".join(lines)
