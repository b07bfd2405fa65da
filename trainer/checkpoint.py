"""A finished step on disk: the model's weights and what describes them; and what every saved file has."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import SegmentationModel, build_model

# Reading is the models' own, so that a model needs no trainer; this is the trainer's place of both.
from models.saved import digest as digest
from models.saved import load_checkpoint as load_checkpoint
from models.saved import load_saved as load_saved
from models.saved import load_weights_of
from trainer.config import Config
from utils.files import open_atomic, writing


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Path of the checkpoint of a finished step."""
    return run_dir / "checkpoints" / f"step_{step}.pth"


def save_checkpoint(path: Path, model: SegmentationModel, **description: Any) -> None:
    """Write weights and description (plain values) in one move; raises SaveError, an older file staying intact."""
    save(path, {"model": model.state_dict(), **description})


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values with their digest, in one move; raises SaveError naming path and size."""
    content = {**state, "digest": digest(state)}
    num_bytes = sum(tensor.nbytes for tensor in _tensors(state))
    with writing(path, num_bytes), open_atomic(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # how torch's writer tells a full disk
            raise OSError(str(error)) from error


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def new_model(config: Config, num_classes: list[int], pretrained: bool | str = False) -> SegmentationModel:
    """Build the configured model with the classes of each step so far (background in the first)."""
    options = config.model.model_dump(exclude={"name", "pretrained"})
    return build_model(
        config.model.name,
        num_classes,
        pretrained=pretrained,
        image_size=config.train.crop_size,
        **options,
    )


def restore_base(config: Config, checkpoint: dict[str, Any]) -> SegmentationModel:
    """`restore_model` of the checkpoint that `init_from` names, with or without auxiliary classifier as configured.

    One that the base step has not trained starts as the background's row; one that is not asked for is left out.
    """
    trained = checkpoint["config"]["model"].get("auxiliary_classifier", False)
    as_trained = config.model.model_copy(update={"auxiliary_classifier": trained})
    model = restore_model(config.model_copy(update={"model": as_trained}), checkpoint)
    if config.model.auxiliary_classifier != trained:
        model.set_auxiliary_classifier(config.model.auxiliary_classifier)
    return model


def restore_model(
    config: Config, checkpoint: dict[str, Any], device: torch.device | str = "cpu"
) -> SegmentationModel:
    """Build the model that a checkpoint holds and load its weights; raises ValueError where they do not fit."""
    model = new_model(config, checkpoint["num_classes"])
    load_weights_of(checkpoint, model)
    return model.to(device)
