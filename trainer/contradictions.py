"""What the fields of a config say against each other, each allowed by itself."""

from typing import TYPE_CHECKING

from datasets.domains import is_domain_task
from methods import METHODS
from models import MODELS
from trainer.rare import RareConfig

if TYPE_CHECKING:
    from trainer.config import Config


def contradictions(config: "Config") -> list[str]:
    """Fields that are right one by one but not together; every line names all fields that it comes from."""
    train, problems = config.train, []
    if train.min_scale > train.max_scale:
        problems.append(
            f"train.min_scale: {train.min_scale} exceeds train.max_scale {train.max_scale}; it must not be larger"
        )
    if train.nesterov and (train.optimizer != "sgd" or train.momentum == 0):
        problems.append("train.nesterov: needs train.optimizer sgd and a train.momentum above 0")
    if config.evaluate.stride is not None and config.evaluate.mode != "sliding":
        problems.append(
            f"evaluate.stride: is for evaluate.mode sliding only, found {config.evaluate.mode}; set the mode too, or "
            "leave it out"
        )
    if config.evaluate.short_side != "crop" and config.evaluate.mode == "center_crop":
        problems.append(
            f"evaluate.short_side: found {config.evaluate.short_side} with evaluate.mode center_crop, which scales the "
            "short side to the crop; set evaluate.mode to whole or sliding, or leave it out"
        )
    if config.evaluate.stride is not None and config.evaluate.stride > train.crop_size:
        problems.append(
            f"evaluate.stride: {config.evaluate.stride} exceeds train.crop_size {train.crop_size}, the side of a "
            "window: pixels between windows would be left out; take at most the crop"
        )
    if config.checkpoint == "best_holdout" and config.val_fraction == 0:
        problems.append("checkpoint: best_holdout needs held-out images: set val_fraction, such as 0.1")
    if config.checkpoint == "best_validation_new" and is_domain_task(config.task):
        problems.append(
            f"checkpoint: best_validation_new scores the step's new classes, and task {config.task} brings domains "
            "instead; use best_validation or last"
        )
    if config.memory.size and config.data.train_on == "seen":
        problems.append(
            "memory.size: data.train_on seen (method joint) trains on all images of earlier steps already; set one only"
        )
    if config.continue_training and config.init_from is None:
        problems.append(
            "continue_training: needs the checkpoint to go on from: set init_from, or leave it out"
        )
    if config.class_order is not None and not isinstance(config.task, str):
        problems.append(
            "class_order: goes with a named task such as '15-1'; lists of names in task have their own order"
        )
    return problems + check_method(config)


def check_method(config: "Config") -> list[str]:
    """Return a line for everything in the config that does not go with its method."""
    method, model = METHODS[config.method.name], MODELS[config.model.name]
    problems = []
    if method.needs_stages and not model.has_stages:
        problems.append(
            f"method.name: {config.method.name} compares the stages of a convolutional backbone, which model.name "
            f"{config.model.name} has not; use model.name deeplabv3, or another method"
        )
    classifier = getattr(config.model, "classifier", "rows")
    if classifier != "rows" and not method.takes_heads:
        able = ", ".join(name for name, other in METHODS.items() if other.takes_heads)
        problems.append(
            f"model.classifier: {classifier} is for method {able}, found method.name {config.method.name}; take rows"
        )
    if getattr(config.data, "saliency", None) is not None and not method.takes_heads:
        problems.append(
            f"data.saliency: method {config.method.name} uses none; leave it out, or take method ssul"
        )
    if method.needs_new_classes and is_domain_task(config.task):
        able = ", ".join(name for name, other in METHODS.items() if not other.needs_new_classes)
        problems.append(
            f"method.name: {config.method.name} needs new classes in every step, and task {config.task} brings domains "
            f"instead; use one of {able}"
        )
    if config.continue_training and not method.base_step.trains:
        problems.append(
            f"continue_training: method {config.method.name} solves for its classes; rerun it on all images, old and "
            "new, without init_from"
        )
    trains = method.trains or method.base_step.trains
    if config.checkpoint != "last" and not trains:
        problems.append(
            f"checkpoint: method {config.method.name} trains no epochs of which {config.checkpoint} could choose one; "
            "set it to last"
        )
    if config.rare != RareConfig() and not trains:
        able = ", ".join(name for name, other in METHODS.items() if other.trains)
        problems.append(
            f"rare: method {config.method.name} solves for its classes and trains nothing that these fields could "
            f"change; leave them out, or use one of {able}"
        )
    residuals = config.model.model_dump().get("background_residuals", "none")
    if residuals != "none" and not method.lowers_background:
        problems.append(
            f"model.background_residuals: found {residuals}, which method.name {config.method.name} does not train; "
            "set it to none, or take method barm"
        )
    return problems + _check_old_weights(config) + method.check(config)


def _check_old_weights(config: "Config") -> list[str]:
    """What does not go with keeping old weights, wholly or in part."""
    train, name, problems = config.train, config.method.name, []
    for field in ("fuse_old_weights", "freeze_old_classes"):
        if getattr(train, field) and is_domain_task(config.task):
            problems.append(
                f"train.{field}: goes by old and new classes, and task {config.task} brings domains; set it to false"
            )
        if getattr(train, field) and not METHODS[name].trains:
            problems.append(f"train.{field}: method.name {name} trains no weights; set it to false")
    if train.fuse_old_weights and getattr(config.model, "compensation", False):
        problems.append(
            "train.fuse_old_weights: fuses weight by weight, and model.compensation gives a branch another meaning "
            "with every step; set one of them to false"
        )
    if train.fuse_old_weights and train.freeze_extractor:
        problems.append(
            "train.fuse_old_weights: train.freeze_extractor keeps all old weights as they are, so there is nothing to "
            "fuse; set one of them to false"
        )
    return problems
