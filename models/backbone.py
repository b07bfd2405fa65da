"""Backbones from timm, and how they want their input."""

import difflib
from pathlib import Path

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import load_state_dict
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
    try:
        backbone: nn.Module = timm.create_model(
            name,
            features_only=True,
            out_indices=(-1,),
            output_stride=output_stride,
            pretrained=pretrained is True,
        )
    except (TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"model.backbone: '{name}' gives no feature map at output stride {output_stride} "
            f"({type(error).__name__}: {error}); choose a convolutional backbone of timm such as resnet101, or "
            "another model.output_stride"
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        # Whatever a hub client raises, the cause is that it gave no weights.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"model.pretrained: the weights of '{name}' could not be fetched ({reason[0]}); without a network, "
            "fetch them elsewhere and set model.pretrained=PATH, or start from random weights with "
            "model.pretrained=false"
        ) from error
    if isinstance(pretrained, str):
        load_weights(backbone, name, pretrained)
    channels: int = backbone.feature_info.channels()[-1]  # type: ignore[operator, union-attr]
    return backbone, channels


def load_weights(backbone: nn.Module, name: str, path: str) -> None:
    """Load a state dict of timm's model `name`; what lies behind its last feature map is left out.

    Raises ValueError naming the file where it cannot be read or lacks a weight.
    """
    if not Path(path).is_file():
        raise ValueError(f"model.pretrained: no file '{path}'; give the path of a state dict, true or false")
    try:
        weights = load_state_dict(path, weights_only=True)  # older versions of timm would run code in it
        # Some of timm's feature extractors flatten the names of the model: stages.0 is stages_0 there.
        by_flat_name = {key.replace(".", "_"): tensor for key, tensor in weights.items()}
        flat_names = {key: key.replace(".", "_") for key in backbone.state_dict()}
        state = {key: by_flat_name[flat] for key, flat in flat_names.items() if flat in by_flat_name}
        missing = backbone.load_state_dict(state, strict=False).missing_keys
    except Exception as error:  # a foreign or damaged pickle raises whatever its bytes happen to mean
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"model.pretrained: '{path}' does not hold weights of '{name}': {reason}") from error
    if missing:
        raise ValueError(
            f"model.pretrained: '{path}' does not hold weights of '{name}': it lacks {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}"
        )


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Return the model with BatchNorm statistics over all ranks.

    Not torch's converter: that one drops the activations inside timm's BatchNormAct2d.
    """
    converted: nn.Module = convert_sync_batchnorm(model)
    return converted


def _unknown(name: str) -> str:
    similar = difflib.get_close_matches(name, timm.list_models(), n=5)
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    return f"model.backbone: timm has no model '{name}'{hint}"
