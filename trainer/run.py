"""A whole run: every step is trained, saved, evaluated and reported, from its plan."""

import shlex
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datasets.id_list import digest_ids
from datasets.tasks import Step
from trainer.checkpoint import RERUN, checkpoint_path, load_checkpoint, restore_model
from trainer.checks import digest_of_classes, uses_sync_batch_norm
from trainer.config import Config
from trainer.hints import explain_unlearned
from trainer.image_ids import keep_images
from trainer.kernels import fixed_order
from trainer.learn import learn
from trainer.panels import draw_panels
from trainer.plan import Plan
from trainer.session import Session
from trainer.tiles import is_out_of_memory
from trainer.validation import score_on_holdout, validate
from utils.config.fields import flatten
from utils.distributed import Worker
from utils.errors import RunError, explain
from utils.files import remove_unfinished, write_atomic
from utils.lock import lock
from utils.logging import RunLog
from utils.metrics import mean_iou, pixel_flow
from utils.report.html import write_html_report
from utils.report.results import SCORES, build_results, make_step_entry
from utils.report.run_files import save_confusion, write_plots, write_results, write_task
from utils.report.tables import format_table
from utils.signals import Interruption

SECONDS_BETWEEN_PICTURES = 60.0
"""Plots and report.html take seconds to draw: they follow the last step, and in between no more often than this."""


class MemoryFullError(RunError, RuntimeError):
    """A forward or backward pass needs more memory than there is."""

    met_by_all = False


def run(plan: Plan, worker: Worker, interruption: Interruption | None = None) -> None:
    """Train and evaluate every step that has not been finished yet, and write the results after each.

    interruption: whether this process is asked to end; a step then saves where it is.
    Raises RunLockedError where the run lives already, MemoryFullError.
    """
    with ExitStack() as held:
        worker.main_only(lambda: held.enter_context(lock(plan.config.run_dir)))
        worker.main_only(lambda: remove_unfinished(plan.config.run_dir))
        log = RunLog(plan.config.run_dir, worker.is_main)
        held.push(lambda kind, *_: log.close(is_failing=kind is not None))
        held.enter_context(fixed_order(plan.config.train.deterministic))
        project = plan.config.logging.wandb
        if project is not None and len(plan.finished) < len(plan.task.steps):
            fields = plan.config.model_dump(mode="json")
            worker.main_only(lambda: log.start_wandb(project, plan.config.log, fields))
        try:
            run_steps(Session(plan, worker, log, interruption or Interruption()))
        except Exception as error:
            log.write(traceback.format_exc())
            if is_out_of_memory(error):
                raise MemoryFullError(describe_memory(plan.config, worker)) from error
            raise


def describe_memory(config: Config, worker: Worker) -> str:
    """Say that the memory is full, and which fields take less of it."""
    where = "this machine"
    if worker.device.type == "cuda":
        size = torch.cuda.get_device_properties(worker.device).total_memory / 2**30
        where = f"{torch.cuda.get_device_name(worker.device)} ({size:.0f} GiB)"
    train = config.train
    return (
        f"the memory of {where} is full, rank {worker.rank}; raise train.accumulate (here {train.accumulate}) if it "
        f"happened in training, lower evaluate.batch_size (here {config.evaluate.batch_size}) if in evaluation, or "
        f"lower train.crop_size (here {train.crop_size}); scores may change, so give the run another --log"
    )


def run_steps(session: Session) -> None:
    """`run`, once the run is this process's."""
    plan, worker, log = session.plan, session.worker, session.log
    config, run_dir, task = plan.config, session.run_dir, plan.task
    entries, drawn = list(plan.finished), time.monotonic()
    describe_run(session)
    for step in task.steps:
        if step.index < len(entries):
            continue
        learn(session, step)
        entries.append(assess(session, step, entries))
        is_last = step.index == len(task.steps) - 1
        if worker.is_main:
            results = results_so_far(plan, entries, worker)
            write_results(run_dir, results)
            is_time = is_last or time.monotonic() - drawn > SECONDS_BETWEEN_PICTURES
            if config.logging.report and is_time:
                write_plots(run_dir, results)
                draw_report(run_dir, log)
                drawn = time.monotonic()
        if is_last:
            log.final_scores(hyperparameters(config), {score: entries[-1][score] for score in SCORES})
    log.info(format_table(results_so_far(plan, entries, worker)))
    log.info(where_to_look(run_dir))


def hyperparameters(config: Config) -> dict[str, Any]:
    """Return the config's fields by dotted name; first those in which runs are likely to differ.

    These are the method, the seed and what is not a default.
    """
    every = dict(flatten(config.model_dump(mode="json")))
    stated = dict(flatten(config.model_dump(mode="json", exclude_defaults=True)))
    first = {name: every[name] for name in ("method.name", "seed", *stated) if name in every}
    return {**first, **every}


def where_to_look(run_dir: Path) -> str:
    """Return the lines that say where a run's report, checkpoints and curves are."""
    places = {
        "report.html": "report: {} (open it in a browser)",
        "checkpoints": "checkpoints: {}",
        "tensorboard": "curves: tensorboard --logdir {}",
    }
    there = {run_dir / name: text for name, text in places.items() if (run_dir / name).exists()}
    return "\n".join(text.format(shlex.quote(str(path))) for path, text in there.items())


def describe_run(session: Session) -> None:
    """Write config and task into the run's folder, and say what runs where."""
    plan, worker, log = session.plan, session.worker, session.log
    config, run_dir, task = plan.config, session.run_dir, plan.task
    if worker.is_main:
        write_atomic(run_dir / "config.yaml", config.to_yaml())
        for dataset in (plan.train, *(part.val for part in plan.evaluation.parts)):
            keep_images(config, dataset)
        write_task(
            run_dir,
            task.name,
            [task.new_class_names(step) for step in task.steps],
            dict(zip(task.class_names, plan.palette, strict=True)),
            class_ids=list(task.class_ids),
            class_list=digest_of_classes(plan.train),
        )
    log.info(
        f"{run_dir}: {config.method.name} on {config.data.name} {task.name} "
        f"({'domain' if task.domains else config.setting}), "
        f"{worker.world_size} × {worker.device.type}"
        + ("" if config.train.amp == "off" else f", {config.train.amp}")
    )
    if config.train.sync_bn and worker.world_size > 1 and not uses_sync_batch_norm(config, worker):
        why = "CPUs have no SyncBN" if worker.device.type == "cpu" else "auto leaves SyncBN out"
        log.info(f"train.sync_bn: {why}; every rank takes BatchNorm statistics of its own share")
    for message in plan.remarks:
        log.info(message)


def draw_report(run_dir: Path, log: RunLog) -> None:
    """Write report.html; where that fails the run goes on, the report can be made at any time."""
    try:
        write_html_report(run_dir)
    except (OSError, ValueError) as error:
        log.info(
            f"warning: report.html was not written ({explain(error)}); python -m tools.report {run_dir} tries again"
        )


def assess(session: Session, step: Step, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Evaluate the checkpoint of a step on all validation images and return its entry of results.json."""
    plan, config, worker, log = session.plan, session.config, session.worker, session.log
    checkpoint = load_checkpoint(checkpoint_path(config.run_dir, step.index), remedy=RERUN)
    model = restore_model(config, checkpoint, worker.device).eval()
    evaluation = plan.evaluation.so_far(step)
    validation = validate(evaluation, step, model, worker)
    if validation.unreadable.problems:
        log.info(validation.unreadable.describe())
    class_names = plan.task.class_names[: step.num_classes]
    entry = make_step_entry(
        step_index=step.index,
        new_class_names=plan.task.new_class_names(step),
        iou_history=[*map(iou_vector, entries), validation.iou],
        iou_of=validation.iou_of,
        class_names_seen=class_names,
        num_old=step.num_old,
        num_new=step.num_new,
        num_base=plan.task.steps[0].num_new,
        num_train_images=checkpoint["num_train_images"],
        num_val_images=len(evaluation.image_ids) - len(validation.unreadable.problems),
        seconds=checkpoint["seconds"],
    )
    entry["checkpoint"] = checkpoint["chosen"]
    if step.index == 0 and config.takes_base:
        entry["taken_from"] = config.init_from
    if unlabelled := sorted(evaluation.without_label.intersection(step.seen_classes)):
        entry["unlabelled"] = [class_names[c] for c in unlabelled]
    entry["train_images_sha256"] = checkpoint.get("train_images_sha256")  # older checkpoints do not state it
    if plan.task.domains:
        entry["domains"] = list(plan.task.domains[step.index])
        whole = validate(plan.evaluation, step, model, worker)
        entry["all_domains"] = {
            "miou": mean_iou(whole.iou, step.seen_classes),
            "num_val_images": len(plan.val.ids),
        }
    if plan.holdout_ids[step.index]:
        entry["holdout"] = score_on_holdout(plan, step, model, worker)
    groups = {name: value for name, value in entry.items() if name.startswith("miou") and value is not None}
    told = ", ".join(f"{name} {value:.3f}" for name, value in groups.items())
    log.info(f"step {step.index}: {told or 'no class has an IoU'}")
    for hint in explain_unlearned(session, step, validation):
        log.info(f"step {step.index}: {hint}")
    if worker.is_main:
        save_confusion(config.run_dir, step.index, validation.confusion, class_names)
        num_done = plan.first_iteration(step, worker) + plan.num_iterations(step, worker)
        last_iteration = max(0, num_done - 1)
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


def results_so_far(plan: Plan, entries: Sequence[Mapping[str, Any]], worker: Worker) -> dict[str, Any]:
    """Return results.json as it stands after `entries`."""
    config = plan.config
    device = torch.cuda.get_device_name(worker.device) if worker.device.type == "cuda" else "cpu"
    return build_results(
        task=plan.task.name,
        setting="domain" if plan.task.domains else config.setting,
        method=config.method.name,
        dataset=config.data.name,
        class_names=plan.task.class_names,
        steps=entries,
        seed=config.seed,
        device=f"{worker.world_size} × {device}",
        val_images_sha256=digest_ids(plan.evaluation.image_ids),
        num_steps=len(plan.task.steps),
    )
