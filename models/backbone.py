"""Backbones from timm, and how they want their input."""

import difflib
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from models.depthwise import speed_up_dilated_depthwise
from models.pretrained import Weights, flat, load_weights

IMAGENET_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = 255 * torch.tensor([0.229, 0.224, 0.225])
"""Of pixel values 0..255; what most codebases of the field normalise with, whatever the backbone."""


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
    """Return a timm feature extractor that yields the feature maps of its last stages (four at most), and the channels
    of the last.

    pretrained: True fetches timm's ImageNet weights, a string is the path of a state dict for the backbone,
    False starts from random weights.
    Raises ValueError where the backbone is unknown, cannot take the output stride, or has no such weights.
    """
    _check_name(name)
    try:
        backbone: nn.Module = timm.create_model(
            name,
            features_only=True,
            out_indices=(-4, -3, -2, -1),
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
        raise _not_fetched(name, error) from error
    if isinstance(pretrained, str):
        load_weights(backbone, name, pretrained, _rename_flat)
    speed_up_dilated_depthwise(backbone)
    channels: int = backbone.feature_info.channels()[-1]  # type: ignore[operator, union-attr]
    return backbone, channels


def build_vit(
    name: str, pretrained: bool | str, image_size: int, patch_size: int | None = None
) -> VisionTransformer:
    """Return a plain ViT of timm without its head, position embeddings resized to `image_size` (the side, in pixels).

    pretrained: as in `build_backbone`. patch_size: None is the model's own, for another one the patch embedding is
    resized. Images of other sizes are taken too, the position embeddings resized as they come.
    Raises ValueError where timm has no such ViT, or it has no such weights.
    """
    _check_name(name)
    options: dict[str, Any] = {} if patch_size is None else {"patch_size": patch_size}
    no_vit = (
        f"model.backbone: '{name}' is no plain ViT (timm's VisionTransformer), which model.name segmenter needs; "
        "choose one such as vit_base_patch16_384 or vit_tiny_patch16_224"
    )
    try:
        vit = timm.create_model(
            name,
            num_classes=0,
            global_pool="",
            img_size=image_size,
            dynamic_img_size=True,
            pretrained=pretrained is True,
            **options,
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(no_vit) from error
    except Exception as error:
        if not pretrained:
            raise
        raise _not_fetched(name, error) from error
    if not isinstance(vit, VisionTransformer):
        raise ValueError(no_vit)
    if isinstance(pretrained, str):
        load_weights(vit, name, pretrained, checkpoint_filter_fn)
    return vit


def _rename_flat(weights: Weights, backbone: nn.Module) -> Weights:
    """Weights by the backbone's names; what it lacks keeps its own."""
    names = {flat(key): key for key in backbone.state_dict()}
    return {names.get(flat(key), key): tensor for key, tensor in weights.items()}


class StageEnd(nn.Module):
    """The activation that ends a stage of a backbone; it hands out what it was given, where `keeps` was set before."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.keeps = False
        self.given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps:
            self.given = x
            x = x.clone()  # the activation may work in place
        activated: Tensor = self.activation(x)
        return activated

    def take(self) -> Tensor:
        """Return what the activation was given last, and forget it: it holds the memory of a graph."""
        assert self.given is not None, "no forward pass since `keeps` was set"
        given, self.given = self.given, None
        return given


def watch_stage_ends(backbone: nn.Module) -> list[StageEnd | None]:
    """Put a `StageEnd` in the place of the activation that ends each stage, and return them; None where none does.

    One does where the last block of a stage adds its shortcut before it, as those of timm's ResNets and RegNets do.
    """
    modules, ends = dict(backbone.named_modules()), list[StageEnd | None]()
    for name in backbone.feature_info.module_name():  # type: ignore[operator, union-attr]
        blocks: list[nn.Module] = list(modules[name].children()) if name in modules else []
        block = blocks[-1] if blocks else nn.Identity()
        found = next((act for act in ("act3", "act2") if hasattr(block, act)), None)
        # An activation with weights of its own would get other names in checkpoints.
        if found is None or list(block.get_submodule(found).parameters()):
            ends.append(None)
            continue
        end = StageEnd(block.get_submodule(found))
        setattr(block, found, end)
        ends.append(end)
    return ends


def convert_to_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Return the model with BatchNorm statistics over all ranks.

    Not torch's converter: that one drops the activations inside timm's BatchNormAct2d.
    """
    converted: nn.Module = convert_sync_batchnorm(model)
    return converted


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise ValueError(_unknown(name))


def _not_fetched(name: str, error: Exception) -> ValueError:
    """The error for weights that a hub client did not give, whatever it raised."""
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(
        f"model.pretrained: the weights of '{name}' could not be fetched ({reason[0]}); without a network, "
        "fetch them elsewhere and set model.pretrained=PATH, or start from random weights with "
        "model.pretrained=false"
    )


def _unknown(name: str) -> str:
    similar = difflib.get_close_matches(name, timm.list_models(), n=5)
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    return f"model.backbone: timm has no model '{name}'{hint}"
