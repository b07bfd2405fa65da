"""A whole run: every step is trained, saved, evaluated and reported, from its plan."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets.incremental import StepDataset, ValidationDataset, evaluation_table, training_table
from datasets.tasks import Step
from datasets.transforms import EvaluateTransform, TrainTransform
from models import DeepLabV3
from trainer.checkpoint import checkpoint_path, load_checkpoint, restore_model, save_checkpoint
from trainer.evaluate import draw_panel, evaluate
from trainer.plan import Plan
from trainer.step import build_objective, train_step
from utils.distributed import Worker, seed_everything
from utils.files import write_atomic
from utils.logging import RunLog
from utils.metrics import iou_per_class
from utils.report import build_results, format_table, make_step_entry, save_confusion, write_results


def run(plan: Plan, worker: Worker) -> None:
    """Train and evaluate every step that has not been finished yet, and write the results after each."""
    config, run_dir = plan.config, plan.config.run_dir
    log = RunLog(run_dir, worker.is_main)
    if worker.is_main:
        write_atomic(run_dir / "config.yaml", config.to_yaml())
    batch_norm = (
        "plain BatchNorm (SyncBN needs GPUs)" if worker.world_size > 1 and config.train.sync_bn else ""
    )
    log.info(
        f"{run_dir}: {config.method} on {config.data.name} {plan.task.name} ({config.setting}), "
        f"{worker.world_size} × {worker.device.type} {batch_norm if worker.device.type == 'cpu' else ''}".rstrip()
    )
    entries = worker.main_only(lambda: finished_steps(run_dir))
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
    finally:
        log.close()


def finished_steps(run_dir: Path) -> list[dict[str, Any]]:
    """Return the entries of results.json whose checkpoints are there too."""
    path = run_dir / "results.json"
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["steps"]
    missing = [entry["step"] for entry in entries if not checkpoint_path(run_dir, entry["step"]).exists()]
    return entries[: missing[0]] if missing else entries


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
        write_atomic(
            run_dir / "train_images" / f"step_{step.index}.txt", "".join(f"{i}\n" for i in image_ids)
        )
    seed_everything(config.seed, step.index)
    objective = build_objective(config, step)
    model = start_model(plan, step, worker)
    old_model = None
    if objective.needs_old_model:
        old_path = checkpoint_path(run_dir, step.index - 1)
        old_model = restore_model(config, old_path, worker.device).eval().requires_grad_(False)
    dataset = StepDataset(
        plan.train,
        image_ids,
        training_table(plan.task, step, config.data.train_on),
        TrainTransform(
            config.train.crop_size,
            config.train.min_scale,
            config.train.max_scale,
            fill=tuple(model.pixel_mean.flatten().tolist()),
        ),
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


def start_model(plan: Plan, step: Step, worker: Worker) -> DeepLabV3:
    """Return the model as a step starts with it: new at step 0, else the last checkpoint's, grown."""
    config = plan.config
    if step.index == 0:
        assert plan.base_model is not None
        model = plan.base_model.to(worker.device)
    else:
        model = restore_model(config, checkpoint_path(config.run_dir, step.index - 1), worker.device)
        model.grow(step.num_new, config.loss.weight_transfer)
    learns_statistics = step.index == 0 or not config.train.freeze_bn
    if config.train.sync_bn and learns_statistics and worker.world_size > 1 and worker.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def assess(
    plan: Plan,
    step: Step,
    entries: Sequence[Mapping[str, Any]],
    first_iteration: int,
    worker: Worker,
    log: RunLog,
) -> dict[str, Any]:
    """Evaluate the checkpoint of a step on all validation images and return its entry of results.json."""
    config, path = plan.config, checkpoint_path(plan.config.run_dir, step.index)
    model = restore_model(config, path, worker.device).eval()
    table = evaluation_table(plan.task, step, config.evaluate.future, plan.val.background_is_void)
    ids = plan.val.ids
    transform = EvaluateTransform(config.train.crop_size, config.evaluate.mode)
    dataset = ValidationDataset(plan.val, ids[worker.rank :: worker.world_size], table, transform)
    confusion = evaluate(model, dataset, step.num_classes, config, worker)
    class_names = plan.task.class_names[: step.num_classes]
    background_evaluated = bool((table[: len(plan.val.classes)] == 0).any())
    history = [
        np.array([np.nan if v is None else v for v in entry["per_class_iou"].values()]) for entry in entries
    ]
    checkpoint = load_checkpoint(path)
    entry = make_step_entry(
        step_index=step.index,
        new_class_names=plan.task.new_class_names(step),
        iou_history=[*history, iou_per_class(confusion, background_evaluated)],
        class_names_seen=class_names,
        num_old=step.num_old,
        num_new=step.num_new,
        num_base=plan.task.steps[0].num_new,
        num_train_images=checkpoint["num_train_images"],
        num_val_images=len(ids),
        seconds=checkpoint["seconds"],
    )
    if worker.is_main:
        save_confusion(config.run_dir, step.index, confusion, class_names)
        end = first_iteration + plan.sampler(step, worker).num_iterations - 1
        groups = {
            name: entry[name]
            for name in ("miou_all", "miou_old", "miou_new", "miou_base", "miou_incremental")
        }
        log.start_evaluation(step.index)
        log.metrics(step.index, end, groups)
        colours = [plan.val.palette[i] for i in plan.task.class_ids]
        for index in range(min(config.logging.num_panels, len(dataset))):
            image, label = dataset[index]
            panel = draw_panel(model, image, label, colours, config, worker.device)
            log.image(f"step_{step.index}/{dataset.image_ids[index]}", end, panel)
    log.info(
        f"step {step.index}: "
        + ", ".join(
            f"{name} {entry[name]:.3f}"
            for name in entry
            if name.startswith("miou") and entry[name] is not None
        )
    )
    return entry


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
