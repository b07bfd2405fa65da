"""A finished step on disk: the model's weights and what describes them; and what every saved file has."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import SegmentationModel, build_model
from utils.config import Config
from utils.files import open_atomic, writing

KEYS = {"model", "num_classes", "class_names", "step", "config"}
"""What every checkpoint holds; the rest describes it."""


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Path of the checkpoint of a finished step."""
    return run_dir / "checkpoints" / f"step_{step}.pth"


def save_checkpoint(path: Path, model: SegmentationModel, **description: Any) -> None:
    """Write weights and description (plain values) in one move; raises SaveError, an older file staying intact."""
    save(path, {"model": model.state_dict(), **description})


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; no code in it is executed. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the checkpoint is missing; restore it, or delete the later ones and rerun"
        )
    checkpoint = load_saved(path, device)
    if not checkpoint.keys() >= KEYS:
        raise ValueError(f"{path}: not a checkpoint of this code, which holds {', '.join(sorted(KEYS))}")
    return checkpoint


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values with their digest, in one move; raises SaveError naming path and size."""
    content = {**state, "digest": digest(state)}
    num_bytes = sum(tensor.nbytes for tensor in _tensors(state))
    with writing(path, num_bytes), open_atomic(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # how torch's writer tells a full disk
            raise OSError(str(error)) from error


def load_saved(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` has written and check its digest; raises ValueError naming a damaged or foreign file."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a foreign or damaged pickle raises whatever its bytes happen to mean
        raise ValueError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error}); delete it and rerun its step"
        ) from error
    if not isinstance(state, dict) or "digest" not in state:
        raise ValueError(f"{path}: not a checkpoint of this code, which holds a digest")
    expected = state.pop("digest")
    if digest(state) != expected:
        raise ValueError(
            f"{path}: damaged, its contents are not those that were saved; delete it and rerun its step"
        )
    return state


def digest(value: Any) -> str:
    """Return the SHA-256 of tensors and plain values, nested in dicts, lists and tuples; what the zip of
    `torch.save` holds is not checked when it is read."""
    sha = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            # Bytes, as numpy has no bfloat16.
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            sha.update(f"dict{len(value)}".encode())
            for key, item in value.items():
                feed(key)
                feed(item)
        elif isinstance(value, list | tuple):
            sha.update(f"list{len(value)}".encode())
            for item in value:
                feed(item)
        else:
            sha.update(f"{type(value).__name__}{value!r}".encode())

    feed(value)
    return sha.hexdigest()


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
