"""A finished step on disk: the model's weights and what describes them."""

from pathlib import Path
from typing import Any

import torch

from models import SegmentationModel, build_model
from utils.config import Config
from utils.files import open_atomic

KEYS = {"model", "num_classes", "class_names", "step", "config"}
"""What every checkpoint holds; the rest describes it."""


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Path of the checkpoint of a finished step."""
    return run_dir / "checkpoints" / f"step_{step}.pth"


def save_checkpoint(path: Path, model: SegmentationModel, **description: Any) -> None:
    """Write weights and description (plain values) in one move; raises OSError, an older file staying intact."""
    with open_atomic(path) as file:
        torch.save({"model": model.state_dict(), **description}, file)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; no code in it is executed. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the checkpoint is missing; restore it, or delete the later ones and rerun"
        )
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a foreign or damaged pickle raises whatever its bytes happen to mean
        raise ValueError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error}); delete it and rerun its step"
        ) from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= KEYS:
        raise ValueError(f"{path}: not a checkpoint of this code, which holds {', '.join(sorted(KEYS))}")
    return checkpoint


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


def restore_model(
    config: Config, checkpoint: dict[str, Any], device: torch.device | str = "cpu"
) -> SegmentationModel:
    """Build the model that a checkpoint holds and load its weights; raises ValueError where they do not fit."""
    model = new_model(config, checkpoint["num_classes"])
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the checkpoint of step {checkpoint['step']} does not fit the configured model: {reason}"
        ) from error
    return model.to(device)
