"""A whole run: every step is trained, saved, evaluated and reported, from its plan."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datasets.incremental import StepDataset, ValidationDataset, evaluation_table, training_table
from datasets.tasks import Step
from datasets.transforms import EvaluateTransform, TrainTransform
from datasets.unreadable import Unreadable
from models import DeepLabV3
from models.backbone import synchronise_batch_norm
from trainer.checkpoint import checkpoint_path, load_checkpoint, restore_model, save_checkpoint
from trainer.evaluate import draw_panel, evaluate
from trainer.plan import Plan, synchronises_batch_norm
from trainer.step import build_objective, train_step
from utils.distributed import Worker, seed_everything
from utils.files import write_atomic
from utils.logging import RunLog
from utils.metrics import iou_per_class
from utils.report import build_results, format_table, make_step_entry, save_confusion, write_results


def run(plan: Plan, worker: Worker) -> None:
    """Train and evaluate every step that has not been finished yet, and write the results after each."""
    config, run_dir = plan.config, plan.config.run_dir
    entries = list(plan.finished)
    log = RunLog(run_dir, worker.is_main)
    if worker.is_main:
        write_atomic(run_dir / "config.yaml", config.to_yaml())
    log.info(
        f"{run_dir}: {config.method} on {config.data.name} {plan.task.name} ({config.setting}), "
        f"{worker.world_size} × {worker.device.type}"
    )
    if config.train.sync_bn and worker.world_size > 1 and not synchronises_batch_norm(config, worker):
        log.info("train.sync_bn: CPUs have no SyncBN; every rank takes BatchNorm statistics of its own share")
    for message in plan.left_out:
        log.info(message)
    first_iteration = 0
    try:
        for step in plan.task.steps:
            if step.index >= len(entries):
                learn(plan, step, first_iteration, worker, log)
                entries.append(assess(plan, step, entries, first_iteration, worker, log))
                if worker.is_main:
                    write_results(run_dir, summarise(plan, entries, worker))
            first_iteration += plan.sampler(step, worker).num_iterations
        log.info(format_table(summarise(plan, entries, worker)))
    except Exception:
        log.write(traceback.format_exc())
        raise
    finally:
        log.close()


def learn(plan: Plan, step: Step, first_iteration: int, worker: Worker, log: RunLog) -> None:
    """Train one step, from the checkpoint of the step before to the checkpoint of this one."""
    config, run_dir = plan.config, plan.config.run_dir
    path = checkpoint_path(run_dir, step.index)
    if worker.main_only(path.exists):
        return
    image_ids = plan.image_ids[step.index]
    log.info(f"step {step.index}: {', '.join(plan.task.new_class_names(step))}; {len(image_ids)} images")
    log.start_step(step.index, first_iteration)
    if worker.is_main:
        list_path = run_dir / "train_images" / f"step_{step.index}.txt"
        write_atomic(list_path, "".join(f"{image_id}\n" for image_id in image_ids))
    seed_everything(config.seed, step.index)
    objective = build_objective(config, step)
    model, old_model = start_models(plan, step, objective.needs_old_model, worker)
    train = config.train
    fill = tuple(model.pixel_mean.flatten().tolist())
    dataset = StepDataset(
        plan.train,
        image_ids,
        training_table(plan.task, step, config.data.train_on),
        TrainTransform(train.crop_size, train.min_scale, train.max_scale, fill),
        config.seed,
        step.index,
    )
    sampler = plan.sampler(step, worker)
    seconds = train_step(
        model, old_model, objective, dataset, sampler, step, config, worker, log, first_iteration
    )
    if worker.is_main:
        save_checkpoint(
            path,
            model,
            step=step.index,
            num_classes=plan.num_classes(step),
            class_names=list(plan.task.class_names[: step.num_classes]),
            palette=[list(plan.train.palette[i]) for i in plan.task.class_ids[: step.num_classes]],
            config=config.model_dump(mode="json"),
            num_train_images=len(image_ids),
            seconds=seconds,
        )
    worker.barrier()


def start_models(
    plan: Plan, step: Step, needs_old_model: bool, worker: Worker
) -> tuple[DeepLabV3, DeepLabV3 | None]:
    """Return the model as a step starts with it (new at step 0, else the last checkpoint's, grown), and the old one."""
    config, old_model = plan.config, None
    if step.index == 0:
        assert plan.base_model is not None
        model = plan.base_model.to(worker.device)
    else:
        checkpoint = load_checkpoint(checkpoint_path(config.run_dir, step.index - 1))
        model = restore_model(config, checkpoint, worker.device)
        model.grow(step.num_new, config.loss.weight_transfer)
        if needs_old_model:
            old_model = restore_model(config, checkpoint, worker.device).eval().requires_grad_(False)
    learns_statistics = step.index == 0 or not config.train.freeze_bn
    if learns_statistics and synchronises_batch_norm(config, worker):
        synchronise_batch_norm(model)
    return model, old_model


def assess(
    plan: Plan,
    step: Step,
    entries: Sequence[Mapping[str, Any]],
    first_iteration: int,
    worker: Worker,
    log: RunLog,
) -> dict[str, Any]:
    """Evaluate the checkpoint of a step on all validation images and return its entry of results.json."""
    config = plan.config
    checkpoint = load_checkpoint(checkpoint_path(config.run_dir, step.index))
    model = restore_model(config, checkpoint, worker.device).eval()
    table = evaluation_table(plan.task, step, config.evaluate.future, plan.val.background_is_void)
    transform = EvaluateTransform(config.train.crop_size, config.evaluate.mode)
    ids = plan.val.ids
    dataset = ValidationDataset(plan.val, ids[worker.rank :: worker.world_size], table, transform)
    data = config.data
    unreadable = Unreadable(data.on_error, data.max_skipped, len(ids), f"evaluation of step {step.index}")
    confusion = evaluate(model, dataset, step.num_classes, config, worker, unreadable)
    if unreadable.problems:
        log.info(unreadable.describe())
    background_evaluated = bool((table[: len(plan.val.classes)] == 0).any())
    class_names = plan.task.class_names[: step.num_classes]
    entry = make_step_entry(
        step_index=step.index,
        new_class_names=plan.task.new_class_names(step),
        iou_history=[*map(iou_vector, entries), iou_per_class(confusion, background_evaluated)],
        class_names_seen=class_names,
        num_old=step.num_old,
        num_new=step.num_new,
        num_base=plan.task.steps[0].num_new,
        num_train_images=checkpoint["num_train_images"],
        num_val_images=len(ids) - len(unreadable.problems),
        seconds=checkpoint["seconds"],
    )
    groups = {name: value for name, value in entry.items() if name.startswith("miou") and value is not None}
    log.info(f"step {step.index}: " + ", ".join(f"{name} {value:.3f}" for name, value in groups.items()))
    if worker.is_main:
        save_confusion(config.run_dir, step.index, confusion, class_names)
        last_iteration = first_iteration + plan.sampler(step, worker).num_iterations - 1
        log.start_evaluation(step.index)
        log.metrics(step.index, last_iteration, groups)
        colours = [plan.val.palette[i] for i in plan.task.class_ids]
        for index in range(min(config.logging.num_panels, len(dataset))):
            image, label, _ = dataset[index]
            panel = draw_panel(model, image, label, colours, config, worker.device)
            log.image(f"step_{step.index}/{dataset.image_ids[index]}", last_iteration, panel)
    return entry


def iou_vector(entry: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Return the IoUs (K,) of an entry of results.json in learning order, nan for null."""
    return np.array([np.nan if iou is None else iou for iou in entry["per_class_iou"].values()])


def summarise(plan: Plan, entries: Sequence[Mapping[str, Any]], worker: Worker) -> dict[str, Any]:
    """Return results.json as it stands after `entries`."""
    config = plan.config
    device = torch.cuda.get_device_name(worker.device) if worker.device.type == "cuda" else "cpu"
    return build_results(
        task=plan.task.name,
        setting=config.setting,
        method=config.method,
        dataset=config.data.name,
        class_names=plan.task.class_names,
        steps=entries,
        seed=config.seed,
        device=f"{worker.world_size} × {device}",
    )
