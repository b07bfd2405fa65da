"""A finished step on disk: weights of model and method, the method's state, a description; and how files are saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods import Method
from models import SegmentationModel, build_model

# Reading belongs to models/, which needs no trainer; the trainer takes reading and writing from here.
from models.saved import RERUN as RERUN
from models.saved import digest as digest
from models.saved import load_checkpoint as load_checkpoint
from models.saved import load_saved as load_saved
from models.saved import load_weights_of
from trainer.config import Config
from utils.files import open_atomic, writing


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Path of the checkpoint of a finished step."""
    return run_dir / "checkpoints" / f"step_{step}.pth"


def save_checkpoint(
    path: Path,
    model: SegmentationModel,
    *,
    parts: Mapping[str, Tensor] | None = None,
    method_state: Mapping[str, Tensor] | None = None,
    **description: Any,
) -> None:
    """Write weights, what the method carries on, and a description (plain values) in one move.

    parts: weights of the method's own modules; method_state: its tensors.
    Raises SaveError, an older file staying intact.
    """
    carried = {"parts": dict(parts or {}), "method_state": dict(method_state or {})}
    save(path, {"model": model.state_dict(), **carried, **description})


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
    options = config.model.model_copy(update={"pretrained": pretrained})
    return build_model(options, num_classes, config.train.crop_size)


def restore_model(
    config: Config, checkpoint: dict[str, Any], device: torch.device | str = "cpu"
) -> SegmentationModel:
    """Build the model that a checkpoint holds and load its weights; raises ValueError where they do not fit."""
    model = new_model(config, checkpoint["num_classes"])
    load_weights_of(checkpoint, model)
    return model.to(device)


def restore_method(method: Method, checkpoint: dict[str, Any], device: torch.device) -> None:
    """Give a method the state and the weights of its modules that a checkpoint holds.

    Where no step so far had the method's modules, they stay as they are. Raises ValueError where weights do not fit.
    """
    method.state = {name: value.to(device) for name, value in checkpoint["method_state"].items()}
    method.parts_are_trained = bool(checkpoint["parts"])
    if method.parts_are_trained:
        try:
            method.modules.load_state_dict(checkpoint["parts"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the checkpoint of step {checkpoint['step']} does not fit the modules of the method: {reason}"
            ) from error
    method.modules.to(device)
