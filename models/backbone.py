"""Backbones from timm, and how they want their input."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn


def pixel_statistics(backbone: str) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (3,) that a timm backbone expects, in pixel values 0..255."""
    try:
        config = timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        raise ValueError(_unknown(backbone)) from error
    if config is None:
        raise ValueError(_unknown(backbone))
    return torch.tensor(config.mean) * 255, torch.tensor(config.std) * 255


def build_backbone(name: str, pretrained: bool | str, output_stride: int) -> tuple[nn.Module, int]:
    """Return a timm feature extractor that yields its last feature map only, and that map's channels.

    pretrained: True fetches timm's ImageNet weights, a string is the path of a state dict for the backbone,
    False starts from random weights.
    Raises ValueError where the backbone is unknown, cannot take the output stride, or has no such weights.
    """
    if not timm.is_model(name):
        raise ValueError(_unknown(name))
    overlay: dict[str, str] | None = None
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise ValueError(
                f"model.pretrained: no file '{pretrained}'; give the path of a state dict, true or false"
            )
        overlay = {"file": pretrained}
    rng_state = torch.get_rng_state()
    try:
        backbone = _create(name, output_stride, pretrained=bool(pretrained), pretrained_cfg_overlay=overlay)
    except (TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"model.backbone: '{name}' gives no feature map at output stride {output_stride} ({error}); "
            "choose a convolutional backbone of timm such as resnet101, or another model.output_stride"
        ) from error
    except Exception as error:
        # Whatever a hub client, a pickle or a state dict raises, the cause is the weights.
        if not pretrained:
            raise
        raise ValueError(_weights_problem(name, pretrained, f"{type(error).__name__}: {error}")) from error
    if isinstance(pretrained, str):
        left_random = _equal_weights(backbone, _rebuild_random(name, output_stride, rng_state))
        if left_random:
            raise ValueError(_weights_problem(name, pretrained, f"it lacks {', '.join(left_random[:3])} …"))
    channels: int = backbone.feature_info.channels()[-1]  # type: ignore[operator, union-attr]
    return backbone, channels


def _create(name: str, output_stride: int, **options: Any) -> nn.Module:
    backbone: nn.Module = timm.create_model(
        name, features_only=True, out_indices=(-1,), output_stride=output_stride, **options
    )
    return backbone


def _rebuild_random(name: str, output_stride: int, rng_state: Tensor) -> nn.Module:
    """Return the backbone as it is before weights are loaded, leaving PyTorch's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng_state)
        return _create(name, output_stride, pretrained=False)


def _equal_weights(backbone: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of the kernels in which two backbones agree.

    timm ignores weights that a file lacks: those of another architecture would go unnoticed.
    """
    pairs = zip(backbone.named_parameters(), other.parameters(), strict=True)
    return [name for (name, ours), theirs in pairs if ours.ndim > 1 and torch.equal(ours, theirs)]


def _unknown(name: str) -> str:
    similar = difflib.get_close_matches(name, timm.list_models(), n=5)
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    return f"model.backbone: timm has no model '{name}'{hint}"


def _weights_problem(name: str, pretrained: bool | str, problem: str) -> str:
    reason = problem.strip().splitlines()[0]
    if isinstance(pretrained, str):
        return f"model.pretrained: '{pretrained}' does not hold weights of '{name}': {reason}"
    return (
        f"model.pretrained: the weights of '{name}' could not be fetched ({reason}); without a network, fetch "
        "them elsewhere and set model.pretrained=PATH, or train from random weights with model.pretrained=false"
    )
