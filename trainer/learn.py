"""Learning one step: from the checkpoint of the step before to the checkpoint of this one."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets.file_dataset import FileDataset
from datasets.id_list import digest_ids
from datasets.incremental import StepDataset, ValidationDataset, training_table
from datasets.rare import balanced_weights, count_labels
from datasets.source import SegmentationDataset
from datasets.tasks import Step
from datasets.transforms import EvaluateTransform, TrainTransform
from methods import METHODS, Method, method_of_step
from models import SegmentationModel
from models.backbone import convert_to_sync_batch_norm
from models.compensation import two_branches
from trainer.best_weights import best_weights
from trainer.checkpoint import (
    RERUN,
    checkpoint_path,
    load_checkpoint,
    restore_method,
    restore_model,
    save,
    save_checkpoint,
)
from trainer.checks import digest_of_classes, uses_sync_batch_norm
from trainer.fusion import fusion_of
from trainer.iteration import Learner
from trainer.looks import StepLooks
from trainer.network import Network, make_parts
from trainer.plan import Plan
from trainer.progress import MidStepSaves, clear_progress
from trainer.rare import RareTerms, weight_table
from trainer.sections import TrainConfig
from trainer.session import Session
from trainer.shared_base import base_file
from trainer.step import train_step
from utils.distributed import seed_everything
from utils.files import write_atomic
from utils.images import UInt8Array
from utils.labels import IGNORE_INDEX
from utils.signals import name_of


def learn(session: Session, step: Step) -> None:
    """Train one step and save its checkpoint; nothing where that is there already."""
    config, plan, worker, run_dir = session.config, session.plan, session.worker, session.run_dir
    path = checkpoint_path(run_dir, step.index)
    if worker.main_only(path.exists):
        worker.main_only(lambda: clear_progress(run_dir, step.index))  # a kill may have come just before
        return
    if step.index == 0 and config.takes_base:
        worker.main_only(lambda: take_over(session, path))
        return
    name_images(session, step)
    seed_everything(config.seed, step.index)
    learner = start_step(session, step)
    method, model = learner.method, learner.model
    dataset = step_dataset(plan, step, model)
    learner = replace(learner, rare=rare_terms(session, step, dataset, method))
    saves = MidStepSaves(session, step)
    augmented = partial(step_dataset, plan, plan.task.steps[0], model)
    whole = partial(whole_datasets, session, step)
    method.looks = StepLooks(session, step, dataset, augmented, whole, learner.old_model)
    started = time.monotonic()
    if saves.num_done == 0:
        method.begin_step(model, method.looks)
    fusion = fusion_of(session, step, learner.network)
    best = best_weights(session, step, fusion) if method.trains else None
    with session.interruption.deferred():
        if method.trains:
            seconds = train_step(session, step, learner, dataset, saves, best)
        else:
            session.log.start_step(step.index, plan.first_iteration(step, worker))
            seconds = time.monotonic() - started
        chosen: dict[str, Any] = {"by": config.checkpoint if method.trains else "last"}
        if best is not None:
            if best.best is None:
                session.log.info(
                    f"step {step.index}: checkpoint {config.checkpoint}: the images that decide show no pixel of a "
                    "class that counts, so the last epoch was taken; hold out more of them (val_fraction)"
                )
            best.restore(learner)
            chosen |= {"epoch": best.epoch, "score": best.best}
        if fusion is not None:
            fusion.fuse(learner.network)
        method.end_step(model, learner.old_model)
        description = describe_checkpoint(plan, step, model.num_classes)
        if model.closed_form is not None:
            description["described_by"] = list(model.closed_form.described_by)
        description |= {"chosen": chosen, "num_train_images": len(dataset), "seconds": seconds}
        description["train_images_sha256"] = digest_ids(dataset.image_ids)
        description |= {"parts": method.modules.state_dict(), "method_state": method.state}
        worker.main_only(lambda: save_checkpoint(path, model, **description))
        worker.main_only(lambda: clear_progress(run_dir, step.index))
    (received,) = worker.largest(session.interruption.received)
    if received:
        session.log.info(
            f"{name_of(received)}: step {step.index} was saved as a whole; the same command does the rest"
        )
        raise SystemExit(128 + received)


def name_images(session: Session, step: Step) -> None:
    """Say how many images the step learns from, and write their ids into the run's folder."""
    plan, log = session.plan, session.log
    image_ids = plan.image_ids[step.index]
    log.info(f"step {step.index}: {', '.join(plan.task.new_names(step))}; {len(image_ids)} images")
    if session.config.memory.size and step.index > 0:
        num_kept, size = len(plan.memory_ids[step.index]), session.config.memory.size
        log.info(f"memory: {num_kept} of these images, of at most {size}, are of earlier steps")
    lists = {
        "train_images": image_ids,
        "memory": plan.memory_ids[step.index],
        "holdout_images": plan.holdout_ids[step.index],
    }
    for folder, ids in lists.items():
        if ids and session.worker.is_main:
            text = "".join(f"{image_id}\n" for image_id in ids)
            write_atomic(session.run_dir / folder / f"step_{step.index}.txt", text)


def start_step(session: Session, step: Step) -> Learner:
    """Return what learns in a step: new at step 0, else from the last checkpoint, with the step's classes added."""
    config, worker = session.config, session.worker
    num_future = session.plan.task.num_future(step)
    method = method_of_step(config.method, step.num_old, step.num_new, num_future)
    old_model = None
    if step.index == 0:
        # Taken out of the plan, which lives as long as the run: a GPU would hold the base step's network to its end.
        network = session.plan.base_network.pop().to(worker.device)
        method.modules = network.parts
    else:
        checkpoint = load_checkpoint(checkpoint_path(session.run_dir, step.index - 1), remedy=RERUN)
        model = restore_model(config, checkpoint, worker.device)
        method.modules = make_parts(method, config)
        restore_method(method, checkpoint, worker.device)
        network = Network(model, method.modules)
        for layer in two_branches(model):
            layer.merge()
        if step.num_new:
            method.add_classes(model, step.num_new)
        if method.needs_old_model:
            old_model = restore_model(config, checkpoint, worker.device).eval().requires_grad_(False)
    method.model = network.model
    learns_statistics = step.index == 0 or not config.train.freeze_bn
    if learns_statistics and uses_sync_batch_norm(config, worker):
        convert_to_sync_batch_norm(network)
    return Learner(method, network, old_model)


def step_dataset(plan: Plan, step: Step, model: SegmentationModel) -> StepDataset:
    """Return the step's images, augmented, with the labels that the step may see."""
    config = plan.config
    return StepDataset(
        plan.train,
        plan.image_ids[step.index],
        training_table(plan.task, step, config.data.train_on, config.train.void_label),
        train_transform(config.train, model),
        config.seed,
        step.index,
        plan.memory_ids[step.index],
        training_table(plan.task, step, config.memory.labels, config.train.void_label),
        salient_reader(plan.train),
    )


def salient_reader(dataset: SegmentationDataset) -> Callable[[str], UInt8Array] | None:
    """Return what reads the saliency masks of a data set, None where it has none."""
    if not isinstance(dataset, FileDataset) or dataset.saliency is None:
        return None
    return dataset.read_salient


def rare_terms(session: Session, step: Step, dataset: StepDataset, method: Method) -> RareTerms | None:
    """Return the terms for rare classes of a step, None where the config has none."""
    config, task, rare = session.config, session.plan.task, session.config.rare
    if not rare.has_terms or not method.trains:
        return None
    classes = [c for c in task.labelled_classes(step, config.data.train_on) if c > 0]
    weights: dict[int, float] = {}
    if rare.class_weights == "balanced":
        counts = session.worker.main_only(lambda: count_labels(dataset, config.data.num_workers))
        weights = balanced_weights(counts, classes)
        told = ", ".join(f"{task.class_names[c]} {weight:.2f}" for c, weight in weights.items())
        session.log.info(f"step {step.index}: class weights: {told}")
    elif rare.class_weights != "none":
        weights = {c: rare.class_weights.get(task.class_names[c], 1.0) for c in classes}
    table = weight_table(weights).to(session.worker.device)
    return RareTerms(rare, method.scores, classes[0], step.num_classes, table)


def train_transform(train: TrainConfig, model: SegmentationModel) -> TrainTransform:
    """Return the augmentation of a step's images."""
    fill = (0.0,) * 3 if train.pad_image == "black" else tuple(model.pixel_mean.flatten().tolist())
    pad_label = 0 if train.pad_label == "background" else IGNORE_INDEX
    return TrainTransform(train.crop_size, train.min_scale, train.max_scale, fill, pad_label)


def whole_datasets(session: Session, step: Step, of_base_step: bool) -> list[ValidationDataset]:
    """Return this rank's images of a step, or of the base step, whole and with the labels that the step may see."""
    plan, config, worker = session.plan, session.config, session.worker
    step = plan.task.steps[0] if of_base_step else step
    memory = set(plan.memory_ids[step.index])
    # The scale of evaluation is the scale at which a model is solved.
    transform = EvaluateTransform(config.train.crop_size, "whole", config.evaluate.short_side)
    tables = {False: config.data.train_on, True: config.memory.labels}
    datasets = []
    for is_memory, train_on in tables.items():
        ids = [i for i in plan.image_ids[step.index] if (i in memory) is is_memory]
        table = training_table(plan.task, step, train_on, config.train.void_label)
        datasets.append(
            ValidationDataset(plan.train, ids[worker.rank :: worker.world_size], table, transform)
        )
    return datasets


def take_over(session: Session, path: Path) -> None:
    """Make the checkpoint that `init_from` names this run's step 0."""
    config, plan = session.config, session.plan
    step = plan.task.steps[0]
    assert config.init_from is not None
    base = load_checkpoint(base_file(config.init_from))
    names = ", ".join(plan.task.new_class_names(step))
    session.log.info(f"step 0: {names}; taken from {config.init_from}")
    method = method_of_step(config.method, 0, step.num_new, plan.task.num_future(step))
    method.modules = make_parts(method, config)
    carried = carried_over(METHODS[config.method.name], base)
    if base.get("described_by") and "described_by" not in carried:
        session.log.info(
            f"{config.init_from} scores by a solved classifier, which method {config.method.name} leaves behind: the "
            "trained one below it goes on, which knows no class that was only solved"
        )
    if method.modules and not carried["parts"]:
        session.log.info(
            f"method {config.method.name}: the base step was trained without its modules "
            f"({', '.join(method.modules)}); they start at step 1"
        )
    told = {name: base[name] for name in ("chosen", "num_train_images", "seconds")}
    told["train_images_sha256"] = base.get("train_images_sha256")
    save(path, {**carried, **describe_checkpoint(plan, step, base["num_classes"]), **told})


def carried_over(method: type[Method], base: dict[str, Any]) -> dict[str, Any]:
    """Return what a method takes from a base step's checkpoint: the weights and, if its own base step wrote them, all
    that it carries on, and the solved classifier if the method solves, too.
    """
    own = METHODS[base["config"]["method"]["name"]].base_step is method.base_step
    solved = own and not method.trains and base.get("described_by") is not None
    weights = {name: x for name, x in base["model"].items() if solved or not name.startswith("closed_form.")}
    carried = {name: base[name] if own else {} for name in ("parts", "method_state")}
    return {"model": weights, **carried, **({"described_by": base["described_by"]} if solved else {})}


def describe_checkpoint(plan: Plan, step: Step, num_classes: list[int]) -> dict[str, Any]:
    """Return what makes the weights after a step readable on their own."""
    return {
        "step": step.index,
        "num_classes": num_classes,
        "class_names": list(plan.task.class_names[: step.num_classes]),
        "palette": [list(colour) for colour in plan.palette[: step.num_classes]],
        "class_ids": list(plan.task.class_ids[: step.num_classes]),
        "class_list": digest_of_classes(plan.train),
        "config": plan.config.model_dump(mode="json"),
    }
