"""A saved model: its file is read, checked and built from what it says of itself."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from models.base import SegmentationModel
from models.build import MODELS, build_model

KEYS = {"model", "num_classes", "class_names", "step", "config", "parts", "method_state"}
"""What every checkpoint holds; the rest describes it."""


class ModelInfo(NamedTuple):
    """What a checkpoint says of its model.

    class_names, palette (RGB, 0..255): by class id, background at 0; num_classes: classes of each step so far,
    background counted in the first; step: the last of them; config: the run's configuration, as plain values.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_classes: tuple[int, ...]
    step: int
    config: dict[str, Any]


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[SegmentationModel, ModelInfo]:
    """Return the model of a checkpoint, ready to predict (`eval`), and what is known of it.

    The model takes RGB pixel values 0..255 (B,3,H,W) of any dtype and size. Raises FileNotFoundError or ValueError
    naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; a run writes RUN/checkpoints/step_0.pth, step_1.pth, …"
        )
    checkpoint = load_checkpoint(path)
    try:
        section = checkpoint["config"]["model"]
        options = MODELS[section["name"]].Options.model_validate({**section, "pretrained": False})
        model = build_model(options, checkpoint["num_classes"], checkpoint["config"]["train"]["crop_size"])
        load_weights_of(checkpoint, model)
        info = ModelInfo(
            tuple(checkpoint["class_names"]),
            tuple((red, green, blue) for red, green, blue in checkpoint["palette"]),
            tuple(checkpoint["num_classes"]),
            checkpoint["step"],
            checkpoint["config"],
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        if isinstance(error, ValidationError):
            reason = "; ".join(f"model.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(
            f"{path}: no model of this version of the code can be built from it: {reason}"
        ) from error
    return model.to(device).eval(), info


def load_weights_of(checkpoint: dict[str, Any], model: SegmentationModel) -> None:
    """Put a checkpoint's weights into a model; raises ValueError where they do not fit."""
    described_by = checkpoint.get("described_by")
    if described_by is not None:
        weight, bias = (checkpoint["model"][f"closed_form.{name}"] for name in ("weight", "bias"))
        model.solve_classes(described_by, weight, bias)
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the checkpoint of step {checkpoint['step']} does not fit the configured model: {reason}"
        ) from error


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; no code in it is executed. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the checkpoint is missing; restore it, or delete the later ones and rerun"
        )
    checkpoint = load_saved(path, device)
    missing = sorted(KEYS - checkpoint.keys())
    if missing and {"model", "config"} <= checkpoint.keys():
        raise ValueError(
            f"{path}: written by another version of this code (it lacks {', '.join(missing)}), which this one does not "
            "read; train it again, or use it with the version that wrote it: results.json of its run names the commit"
        )
    if missing:
        raise ValueError(f"{path}: not a checkpoint of this code, which holds {', '.join(sorted(KEYS))}")
    return checkpoint


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
