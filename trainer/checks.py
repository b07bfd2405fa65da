"""What must hold before a run trains: config and machine, earlier results, images, the base step."""

import hashlib
import importlib.util
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from datasets import DATASETS
from datasets.source import SegmentationDataset
from datasets.tasks import Task
from methods import METHODS, method_of_step
from models import MODELS
from trainer.checkpoint import RERUN, checkpoint_path, load_checkpoint, restore_method, restore_model
from trainer.config import Config
from trainer.data import make_task
from trainer.network import make_parts
from trainer.precision import settle_precision
from trainer.shared_base import base_file
from trainer.stored_config import describe_difference, differing_fields, with_defaults
from utils.config.read import read_yaml
from utils.console import check_environment
from utils.distributed import Worker
from utils.documents import load_json
from utils.files import check_writable
from utils.images import Colour
from utils.report.schema import load_results

RUN_FOLDERS = (
    "",
    *("checkpoints", "confusion", "holdout_images", "image_ids", "memory", "panels", "plots", "tensorboard"),
    "train_images",
)
RUN_FILES = (
    *("config.yaml", "log.txt", "metrics.jsonl", "report.html", "results.csv", "results.json", "results.md"),
    *("task.json", "wandb_id.txt", ".lock", ".sweep.lock", "console.txt"),
)
"""What a run, and the sweep that starts it, write into its folder."""
CLASS_FIELDS = ("class_names", "class_ids", "palette", "class_list")
"""What a checkpoint says of its classes, in learning order, and of the data set's list of them."""
ENOUGH_FOR_STATISTICS = 8
"""Images at once from which a rank's own BatchNorm statistics do (`train.sync_bn: auto`)."""
SCORE_NAMES = {"softmax": "a softmax", "sigmoid": "sigmoids"}


def check_config(config: Config, worker: Worker) -> None:
    """Raise ValueError with a line for everything that is known to be wrong before data are opened."""
    config, problems = settle_precision(config, worker.device), []
    for check in (lambda: check_parallelism(config, worker), check_environment):
        try:
            check()
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
            make_task(config, classes)
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
    if train.amp == "bf16" and worker.device.type == "cuda":
        with torch.cuda.device(worker.device):
            is_supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if not is_supported:
            problems.append(
                f"train.amp: {torch.cuda.get_device_name(worker.device)} has no bf16 and would emulate it, slower than "
                "without; use fp16 or off"
            )
    if problems:
        raise ValueError("\n".join(problems))


def check_run_dir(config: Config) -> dict[str, Any]:
    """Check what an earlier run of this name has left, and return what its last checkpoint says of its classes.

    Raises ValueError where its config may give other results or its last checkpoint is damaged, or where files could
    not be written; FileNotFoundError where a checkpoint is missing below a later one: what the later one was trained
    from would not be known.
    """
    for name in RUN_FOLDERS:
        check_writable(config.run_dir / name)
    wrong = next((config.run_dir / name for name in RUN_FILES if (config.run_dir / name).is_dir()), None)
    if wrong is not None:
        raise ValueError(f"{wrong}: is a folder, where a run writes a file; move it, or choose another --log")
    # A step has at least one class, and masks of 8 bits know fewer than 256.
    saved = [step for step in range(256) if checkpoint_path(config.run_dir, step).exists()]
    if saved != list(range(len(saved))):
        missing = min(set(range(saved[-1])) - set(saved))
        raise FileNotFoundError(
            f"{checkpoint_path(config.run_dir, missing)}: the checkpoint is missing, but a later one is there "
            f"({checkpoint_path(config.run_dir, saved[-1]).name}); restore it, or delete the later ones and rerun"
        )
    path = config.run_dir / "config.yaml"
    theirs = read_yaml(path) if path.exists() else None
    if theirs is not None:
        _check_same_config(config, theirs)
    if saved:
        # Read even where only its step could use it: a damaged one is better found before training than after.
        path = checkpoint_path(config.run_dir, saved[-1])
        checkpoint = load_checkpoint(path, remedy=RERUN)
        if theirs is None:
            _check_same_config(config, checkpoint["config"])
        return {name: checkpoint.get(name) for name in CLASS_FIELDS} | {"path": str(path)}
    return {}


def digest_of_classes(dataset: SegmentationDataset) -> str:
    """Return a digest of all classes of a data set, their ids and colours: what the pixels of its masks mean."""
    return hashlib.sha256(repr((dataset.classes, dataset.palette)).encode()).hexdigest()[:16]


def check_classes(
    config: Config,
    task: Task,
    dataset: SegmentationDataset,
    palette: Sequence[Colour],
    saved: dict[str, Any],
) -> None:
    """Raise ValueError where a run has begun with other classes, ids or colours than the data set has now.

    palette: the classes' colours, in learning order. saved: what `check_run_dir` returns of its last checkpoint.
    """
    ours: dict[str, Any] = {
        "class_names": list(task.class_names),
        "class_ids": list(task.class_ids),
        "palette": [list(colour) for colour in palette],
        "class_list": digest_of_classes(dataset),
    }
    path = config.run_dir / "task.json"
    told = [(path, _read_classes(path))] if path.exists() else []
    told += [(Path(saved["path"]), saved)] if saved else []
    for source, theirs in told:
        for name in CLASS_FIELDS:
            found = theirs.get(name)
            expected = ours[name][: len(found)] if isinstance(found, list) else ours[name]
            if found is not None and found != expected:
                what = f"{name}: {_first_difference(found, expected)}, there → here"
                if name == "class_list":
                    what = "the data set's list of classes, in one that the task leaves out"
                raise ValueError(
                    f"{source}: the run in {config.run_dir} has begun with other classes ({what}); bring back the "
                    "classes that it began with, or choose another --log"
                )


def _read_classes(path: Path) -> dict[str, Any]:
    """What task.json says of the classes, by the names that checkpoints have for it."""
    content = load_json(path)
    try:
        names = [name for step in content["steps"] for name in step]
        colours = [content["colours"][name] for name in names]
        palette = [list(bytes.fromhex(colour.removeprefix("#"))) for colour in colours]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not the task of a run; delete it and rerun") from error
    more = {name: content.get(name) for name in ("class_ids", "class_list")}
    return {"class_names": names, "palette": palette, **more}


def _first_difference(theirs: Any, ours: Any) -> str:
    """The first entry in which two lists differ; of anything else both."""
    if not (isinstance(theirs, list) and isinstance(ours, list)):
        return f"{theirs} → {ours}"
    pairs = zip_longest(theirs, ours)
    return next(f"{a} → {b} at {i}" for i, (a, b) in enumerate(pairs) if a != b)


def _check_same_config(config: Config, theirs: dict[str, Any]) -> None:
    difference = describe_difference(config.model_dump(mode="json"), theirs)
    if difference:
        raise ValueError(
            f"{config.run_dir}: {difference}; choose another --log, or undo the difference to continue that run"
        )


def finished_steps(config: Config, task: Task) -> list[dict[str, Any]]:
    """Return the entries of results.json whose checkpoints are there too; raises ValueError naming a bad file."""
    path = config.run_dir / "results.json"
    if not path.exists():
        return []
    try:
        entries = list(load_results(path)["steps"])
    except ValueError as error:
        raise ValueError(
            f"{error}; delete it, and the steps that have checkpoints are evaluated again"
        ) from error
    saved = [checkpoint_path(config.run_dir, step.index).exists() for step in task.steps]
    return entries[: saved.index(False)] if False in saved else entries


def check_selection(config: Config, task: Task, selected: list[tuple[list[str], list[str]]]) -> None:
    """Raise ValueError for a step that has nothing to train on."""
    for step, (ids, held_out) in zip(task.steps, selected, strict=True):
        if ids or (step.index == 0 and config.takes_base):
            continue
        where = f"step {step.index} ({', '.join(task.new_names(step))})"
        if held_out:
            raise ValueError(
                f"val_fraction: {config.val_fraction} holds out all {len(held_out)} training images of {where}; "
                "lower it, or set it to 0"
            )
        raise ValueError(
            f"task: {where} has no training image of {config.data.name} in setting '{config.setting}'; "
            "take other classes or another setting"
        )


def check_rare(config: Config, task: Task) -> None:
    """Raise ValueError for weights of classes that the task has not."""
    weights = config.rare.class_weights
    unknown = (
        [name for name in weights if name not in task.class_names[1:]] if isinstance(weights, dict) else []
    )
    if unknown:
        raise ValueError(
            f"rare.class_weights: found {', '.join(unknown)}; the task has the classes "
            f"{', '.join(task.class_names[1:])}, and background keeps the weight 1"
        )


def check_base(config: Config, task: Task, num_images: int) -> None:
    """Check that the checkpoint of `init_from` holds the classes of step 0 and fits the configured model and method.

    num_images: images of step 0 that are there. Raises FileNotFoundError or ValueError naming the file.
    """
    assert config.init_from is not None
    if len(task.steps) == 1 and config.takes_base:
        raise ValueError(
            f"init_from: task {task.name} has one step, which is taken over from {config.init_from} as it is, so that "
            "nothing would be trained; to go on training its classes on these images, set continue_training=true"
        )
    checkpoint = load_checkpoint(base_file(config.init_from))
    ours, theirs = list(task.class_names[: task.steps[0].num_new]), checkpoint["class_names"]
    if ours != theirs:
        raise ValueError(
            f"init_from: {config.init_from} knows the classes {', '.join(theirs)}, but step 0 of task {task.name} "
            f"learns {', '.join(ours)}; their names and order must agree"
        )
    base = with_defaults(checkpoint["config"])
    # A base step has no residual: the network is the same with and without them.
    may_differ = {"pretrained", "background_residuals"}
    differing = differing_fields(
        config.model.model_dump(mode="json", exclude=may_differ), base["model"] | dict.fromkeys(may_differ)
    )
    if differing:
        raise ValueError(
            f"init_from: {config.init_from} holds another model (model: {'; '.join(differing)}, there → here)"
        )
    name = base["method"]["name"]
    if name not in METHODS:
        raise ValueError(
            f"init_from: {config.init_from} was trained with method {name}, which this code does not have; it has "
            f"{', '.join(METHODS)}"
        )
    theirs_of, ours_of = METHODS[name], METHODS[config.method.name]
    if theirs_of.scores != ours_of.scores:
        raise ValueError(
            f"init_from: {config.init_from} was trained with method {name}, whose scores are "
            f"{SCORE_NAMES[theirs_of.scores]}, this run is with {config.method.name}, whose scores are "
            f"{SCORE_NAMES[ours_of.scores]}; take a base step of a method with the same scores: "
            f"{', '.join(name for name, method in METHODS.items() if method.scores == ours_of.scores)}"
        )
    if config.continue_training and checkpoint.get("described_by") is not None:
        raise ValueError(
            f"init_from: {config.init_from} was solved by method {name}, not trained: there is nothing to go on with; "
            "set continue_training to false, or rerun that method on all images"
        )
    method = method_of_step(config.method, task.steps[0].num_new, 1)
    is_own = theirs_of.base_step is ours_of.base_step
    carried = checkpoint["method_state"] if is_own else {}
    if method.begins_with not in (None, *carried) and num_images == 0:
        raise ValueError(
            f"init_from: {config.init_from} was trained with method {name} and holds nothing that "
            f"method {config.method.name} could go on from, and no image of step 0 is there to begin with; take a "
            f"checkpoint of a run with method {config.method.name}, or data that hold images of step 0"
        )
    try:
        restore_model(config, checkpoint)
    except ValueError as error:
        raise ValueError(f"init_from: {config.init_from}: {error}") from error
    if is_own:
        _check_parts(config, task, checkpoint)


def _check_parts(config: Config, task: Task, checkpoint: dict[str, Any]) -> None:
    """Raise ValueError where the method's own modules in a base step are not those that this run would train."""
    first = task.steps[0]
    method = method_of_step(config.method, 0, first.num_new, task.num_future(first))
    method.modules = make_parts(method, config)
    try:
        restore_method(method, checkpoint, torch.device("cpu"))
    except ValueError as error:
        raise ValueError(
            f"init_from: {config.init_from}: {error}; take a base step of a run with the same task, or of a method "
            "without such modules"
        ) from error


def uses_sync_batch_norm(config: Config, worker: Worker) -> bool:
    """Whether BatchNorm statistics run over all ranks (only GPUs have the kernel)."""
    train = config.train
    if worker.world_size == 1 or worker.device.type != "cuda":
        return False
    if train.sync_bn == "auto":
        return train.batch_size // (worker.world_size * train.accumulate) < ENOUGH_FOR_STATISTICS
    return train.sync_bn
