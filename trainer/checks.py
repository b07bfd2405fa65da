"""What must hold before a run trains: config and machine, earlier results, images, the base step."""

import importlib.util
import json
from typing import Any

from datasets import DATASETS
from datasets.tasks import Task, build_task
from methods import METHODS
from models import MODELS
from trainer.checkpoint import checkpoint_path, load_checkpoint, restore_model
from trainer.config import Config, differing_fields, with_defaults
from trainer.data import resolve_class_order
from utils.config.read import read_yaml
from utils.distributed import Worker

SCORE_NAMES = {"softmax": "a softmax", "sigmoid": "sigmoids"}


def check_config(config: Config, worker: Worker) -> None:
    """Raise ValueError with a line for everything that is known to be wrong before data are opened."""
    problems = []
    try:
        check_parallelism(config, worker)
    except ValueError as error:
        problems.append(str(error))
    if config.logging.wandb is not None and importlib.util.find_spec("wandb") is None:
        problems.append(
            f"logging.wandb: '{config.logging.wandb}' needs the package wandb, which is not installed; "
            "pip install wandb, or set it to null"
        )
    classes = DATASETS[config.data.name].classes
    if classes is not None and (config.class_order is None or isinstance(config.task, str)):
        try:
            build_task(config.task, classes, resolve_class_order(config))
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
        and not uses_sync_batch_norm(config, worker)
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
    base = with_defaults(checkpoint["config"])
    may_differ = {"pretrained"}
    differing = differing_fields(
        config.model.model_dump(mode="json", exclude=may_differ), base["model"] | dict.fromkeys(may_differ)
    )
    if differing:
        raise ValueError(
            f"init_from: {config.init_from} holds another model (model: {'; '.join(differing)}, there → here)"
        )
    theirs_of, ours_of = METHODS[base["method"]["name"]], METHODS[config.method.name]
    if theirs_of.scores != ours_of.scores:
        raise ValueError(
            f"init_from: {config.init_from} was trained with method {base['method']['name']}, whose scores are "
            f"{SCORE_NAMES[theirs_of.scores]}, this run is with {config.method.name}, whose scores are "
            f"{SCORE_NAMES[ours_of.scores]}; take a base step of a method with the same scores: "
            f"{', '.join(name for name, method in METHODS.items() if method.scores == ours_of.scores)}"
        )
    try:
        restore_model(config, checkpoint)
    except ValueError as error:
        raise ValueError(f"init_from: {config.init_from}: {error}") from error


def uses_sync_batch_norm(config: Config, worker: Worker) -> bool:
    """Whether BatchNorm statistics run over all ranks (only GPUs have the kernel)."""
    return config.train.sync_bn and worker.world_size > 1 and worker.device.type == "cuda"
