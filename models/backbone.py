"""Backbones from timm, and how they want their input."""

from pathlib import Path

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
    if name not in timm.list_models() and not timm.is_model(name):
        raise ValueError(_unknown(name))
    overlay: dict[str, str] | None = None
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise ValueError(
                f"model.pretrained: no file '{pretrained}'; give the path of a state dict, true or false"
            )
        overlay = {"file": pretrained}
    try:
        backbone = timm.create_model(
            name,
            features_only=True,
            out_indices=(-1,),
            output_stride=output_stride,
            pretrained=bool(pretrained),
            pretrained_cfg_overlay=overlay,
        )
    except (TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"model.backbone: '{name}' gives no feature map at output stride {output_stride} ({error}); "
            "choose a convolutional backbone of timm such as resnet101, or another model.output_stride"
        ) from error
    except Exception as error:
        # Whatever a hub client, a pickle or a state dict raises, the cause is the weights.
        if not pretrained:
            raise
        raise ValueError(_weights_problem(name, pretrained, error)) from error
    channels: int = backbone.feature_info.channels()[-1]  # type: ignore[operator, union-attr]
    return backbone, channels


def _unknown(name: str) -> str:
    similar = timm.list_models(f"*{name[:6]}*")[:5]
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    return f"model.backbone: timm has no model '{name}'{hint}"


def _weights_problem(name: str, pretrained: bool | str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(pretrained, str):
        return f"model.pretrained: '{pretrained}' does not hold weights of '{name}': {reason}"
    return (
        f"model.pretrained: the weights of '{name}' could not be fetched ({reason}); without a network, fetch "
        "them elsewhere and set model.pretrained=PATH, or train from random weights with model.pretrained=false"
    )
