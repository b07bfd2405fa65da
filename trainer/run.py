"""A whole run: every step is trained, saved, evaluated and reported, from its plan."""

import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datasets.incremental import StepDataset, training_table
from datasets.tasks import IGNORE_INDEX, Step
from datasets.transforms import TrainTransform
from models import SegmentationModel
from models.backbone import synchronise_batch_norm
from trainer.checkpoint import checkpoint_path, load_checkpoint, restore_base, restore_model, save_checkpoint
from trainer.checks import synchronises_batch_norm
from trainer.config import TrainConfig, flatten
from trainer.panels import draw_panels
from trainer.plan import Plan
from trainer.progress import clear_progress
from trainer.score import best_weights, score_on_holdout, validate
from trainer.step import build_objective, train_step
from trainer.thresholds import measure_thresholds
from utils.distributed import Worker, seed_everything
from utils.files import write_atomic
from utils.lock import lock
from utils.logging import RunLog
from utils.metrics import pixel_flow
from utils.report.html import write_html_report
from utils.report.results import (
    SCORES,
    build_results,
    format_table,
    make_step_entry,
    save_confusion,
    write_results,
    write_task,
)
from utils.signals import Interruption


def run(plan: Plan, worker: Worker, interruption: Interruption | None = None) -> None:
    """Train and evaluate every step that has not been finished yet, and write the results after each.

    interruption: whether this process is asked to end; a step then saves where it is.
    Raises RunLockedError where the run lives already.
    """
    with ExitStack() as held:
        worker.main_only(lambda: held.enter_context(lock(plan.config.run_dir)))
        log = RunLog(plan.config.run_dir, worker.is_main)
        held.callback(log.close)
        project = plan.config.logging.wandb
        if project is not None and len(plan.finished) < len(plan.task.steps):
            fields = plan.config.model_dump(mode="json")
            worker.main_only(lambda: log.start_wandb(project, plan.config.log, fields))
        try:
            run_steps(plan, worker, log, interruption or Interruption())
        except Exception:
            log.write(traceback.format_exc())
            raise


def run_steps(plan: Plan, worker: Worker, log: RunLog, interruption: Interruption) -> None:
    """`run`, once the run is this process's."""
    config, run_dir = plan.config, plan.config.run_dir
    entries = list(plan.finished)
    if worker.is_main:
        write_atomic(run_dir / "config.yaml", config.to_yaml())
        colours = [plan.val.palette[i] for i in plan.task.class_ids]
        write_task(
            run_dir,
            plan.task.name,
            [plan.task.new_class_names(step) for step in plan.task.steps],
            dict(zip(plan.task.class_names, colours, strict=True)),
        )
    log.info(
        f"{run_dir}: {config.method} on {config.data.name} {plan.task.name} ({config.setting}), "
        f"{worker.world_size} × {worker.device.type}"
    )
    if config.train.sync_bn and worker.world_size > 1 and not synchronises_batch_norm(config, worker):
        log.info("train.sync_bn: CPUs have no SyncBN; every rank takes BatchNorm statistics of its own share")
    for message in plan.left_out:
        log.info(message)
    first_iteration = 0
    for step in plan.task.steps:
        if step.index >= len(entries):
            learn(plan, step, first_iteration, worker, log, interruption)
            entries.append(assess(plan, step, entries, first_iteration, worker, log))
            if worker.is_main:
                write_results(run_dir, summarise(plan, entries, worker))
                draw_report(run_dir, log)
            if step.index == len(plan.task.steps) - 1:
                log.final_scores(
                    dict(flatten(config.model_dump(mode="json"))),
                    {score: entries[-1][score] for score in SCORES},
                )
        first_iteration += plan.num_iterations(step, worker)
    log.info(format_table(summarise(plan, entries, worker)))


def draw_report(run_dir: Path, log: RunLog) -> None:
    """Write report.html; where that fails the run goes on, the report can be made at any time."""
    try:
        write_html_report(run_dir)
    except (OSError, ValueError) as error:
        log.info(
            f"warning: report.html was not written ({error}); python -m tools.report {run_dir} tries again"
        )


def learn(
    plan: Plan,
    step: Step,
    first_iteration: int,
    worker: Worker,
    log: RunLog,
    interruption: Interruption,
) -> None:
    """Train one step, from the checkpoint of the step before to the checkpoint of this one."""
    config, run_dir = plan.config, plan.config.run_dir
    path = checkpoint_path(run_dir, step.index)
    if worker.main_only(path.exists):
        return
    if step.index == 0 and config.init_from is not None:
        worker.main_only(lambda: take_over(plan, path, log))
        return
    image_ids = plan.image_ids[step.index]
    log.info(f"step {step.index}: {', '.join(plan.task.new_class_names(step))}; {len(image_ids)} images")
    if config.memory.size and step.index > 0:
        num_kept = len(plan.memory_ids[step.index])
        log.info(f"memory: {num_kept} of these images, of at most {config.memory.size}, are of earlier steps")
    if worker.is_main:
        lists = {
            "train_images": image_ids,
            "memory": plan.memory_ids[step.index],
            "holdout_images": plan.holdout_ids[step.index],
        }
        for folder, ids in lists.items():
            if ids:
                list_path = run_dir / folder / f"step_{step.index}.txt"
                write_atomic(list_path, "".join(f"{image_id}\n" for image_id in ids))
    seed_everything(config.seed, step.index)
    model, old_model = start_models(plan, step, build_objective(config, step).needs_old_model, worker)
    dataset = StepDataset(
        plan.train,
        image_ids,
        training_table(plan.task, step, config.data.train_on),
        train_transform(config.train, model),
        config.seed,
        step.index,
        plan.memory_ids[step.index],
        training_table(plan.task, step, config.memory.labels),
    )
    thresholds, pseudo_label = None, config.loss.pseudo_label
    if old_model is not None and pseudo_label.enabled and pseudo_label.kind == "entropy":
        thresholds = measure_thresholds(old_model, dataset, config, worker)
    objective = build_objective(config, step, thresholds)
    best = best_weights(plan, step, worker)
    with interruption.deferred():
        seconds = train_step(
            model,
            old_model,
            objective,
            dataset,
            plan.sampler(step, worker),
            step,
            config,
            worker,
            log,
            first_iteration,
            best,
            interruption,
        )
        chosen: dict[str, Any] = {"by": config.checkpoint}
        if best is not None:
            model.load_state_dict(best.state)
            chosen |= {"epoch": best.epoch, "score": best.best}
        description = describe_checkpoint(plan, step, model)
        description |= {"chosen": chosen, "num_train_images": len(image_ids), "seconds": seconds}
        worker.main_only(lambda: save_checkpoint(path, model, **description))
        worker.main_only(lambda: clear_progress(run_dir, step.index))


def take_over(plan: Plan, path: Path, log: RunLog) -> None:
    """Make the checkpoint that `init_from` names this run's step 0."""
    config, step = plan.config, plan.task.steps[0]
    assert config.init_from is not None
    base = load_checkpoint(config.init_from)
    log.info(f"step 0: {', '.join(plan.task.new_class_names(step))}; taken from {config.init_from}")
    model = restore_base(config, base)
    if config.model.auxiliary_classifier and not base["config"]["model"].get("auxiliary_classifier", False):
        log.info(
            "model.auxiliary_classifier: the base step was trained without one; it starts as the background's "
            "classifier, and so do the classes of step 1"
        )
    told = {name: base[name] for name in ("chosen", "num_train_images", "seconds")}
    save_checkpoint(path, model, **describe_checkpoint(plan, step, model), **told)


def describe_checkpoint(plan: Plan, step: Step, model: SegmentationModel) -> dict[str, Any]:
    """Return what makes the weights after a step readable on their own."""
    return {
        "step": step.index,
        "num_classes": model.num_classes,
        "class_names": list(plan.task.class_names[: step.num_classes]),
        "palette": [list(plan.train.palette[i]) for i in plan.task.class_ids[: step.num_classes]],
        "config": plan.config.model_dump(mode="json"),
    }


def train_transform(train: TrainConfig, model: SegmentationModel) -> TrainTransform:
    """Return the augmentation of a step's images."""
    fill = tuple(model.pixel_mean.flatten().tolist())
    pad_label = 0 if train.pad_label == "background" else IGNORE_INDEX
    return TrainTransform(train.crop_size, train.min_scale, train.max_scale, fill, pad_label)


def start_models(
    plan: Plan, step: Step, needs_old_model: bool, worker: Worker
) -> tuple[SegmentationModel, SegmentationModel | None]:
    """Return the model as a step starts with it (new at step 0, else the last checkpoint's, grown), and the old one."""
    config, old_model = plan.config, None
    if step.index == 0:
        assert plan.base_model is not None
        model = plan.base_model.to(worker.device)
    else:
        checkpoint = load_checkpoint(checkpoint_path(config.run_dir, step.index - 1))
        model = restore_model(config, checkpoint, worker.device)
        model.grow(step.num_new, config.loss.weight_transfer, config.loss.balanced_bias)
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
    validation = validate(plan, step, model, worker)
    if validation.unreadable.problems:
        log.info(validation.unreadable.describe())
    class_names = plan.task.class_names[: step.num_classes]
    entry = make_step_entry(
        step_index=step.index,
        new_class_names=plan.task.new_class_names(step),
        iou_history=[*map(iou_vector, entries), validation.iou],
        class_names_seen=class_names,
        num_old=step.num_old,
        num_new=step.num_new,
        num_base=plan.task.steps[0].num_new,
        num_train_images=checkpoint["num_train_images"],
        num_val_images=len(plan.val.ids) - len(validation.unreadable.problems),
        seconds=checkpoint["seconds"],
    )
    entry["checkpoint"] = checkpoint["chosen"]
    if plan.holdout_ids[step.index]:
        entry["holdout"] = score_on_holdout(plan, step, model, worker)
    groups = {name: value for name, value in entry.items() if name.startswith("miou") and value is not None}
    log.info(f"step {step.index}: " + ", ".join(f"{name} {value:.3f}" for name, value in groups.items()))
    if worker.is_main:
        save_confusion(config.run_dir, step.index, validation.confusion, class_names)
        last_iteration = max(0, first_iteration + plan.num_iterations(step, worker) - 1)
        log.start_evaluation(step.index)
        log.metrics(step.index, last_iteration, step_curves(entry, validation.confusion, step.num_old))
        for image_id, panel in draw_panels(plan, step, model, worker):
            log.image(f"panels/{image_id}", last_iteration, panel)
    return entry


def step_curves(entry: Mapping[str, Any], confusion: npt.NDArray[np.int64], num_old: int) -> dict[str, float]:
    """Return the scores of a step that become points of curves, by the names of results.json; those that it has.

    `old_pixels_lost_to_background`, which is not there, is the share that report.html shows, of `confusion` (K,K).
    """
    scores = {name: entry[name] for name in SCORES}
    scores |= {f"per_class_iou/{name}": iou for name, iou in entry["per_class_iou"].items()}
    lost = float(pixel_flow(confusion, num_old)[1, 1])
    scores["old_pixels_lost_to_background"] = None if np.isnan(lost) else lost
    return {name: value for name, value in scores.items() if value is not None}


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
