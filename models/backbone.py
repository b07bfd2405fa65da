"""Backbones from timm, and how they want their input."""

import difflib
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed, convert_sync_batchnorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.depthwise import speed_up_dilated_depthwise
from models.pretrained import load_weights

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


OUTPUT_STRIDES = (8, 16, 32)


class Backbone(NamedTuple):
    """A feature extractor of timm.

    network: images (B,3,H,W) -> feature maps of its last stages, four at most, fine to coarse (`feature_maps` gives
    them as (B,C,h,w)); strides: image size over map size, of each; channels: of the last map; multiple: what sides of
    images have to be multiples of, 1 where any will do.
    """

    network: nn.Module
    strides: list[int]
    channels: int
    multiple: int


def build_backbone(name: str, pretrained: bool | str, output_stride: int) -> Backbone:
    """Return timm's backbone `name` with its last feature map at an output stride.

    pretrained: True fetches timm's ImageNet weights, a string is the path of a state dict for the backbone,
    False starts from random weights.
    Raises ValueError where the backbone is unknown, cannot take the output stride or images of any size, or has no such
    weights.
    """
    _check_name(name)
    options = _options_for(name, output_stride)
    try:
        network = _create(name, options, pretrained=pretrained is True)
    except Exception as error:
        if not pretrained:
            raise
        raise _not_fetched(name, error) from error
    if isinstance(pretrained, str):
        load_weights(network, name, pretrained)
    speed_up_dilated_depthwise(network)
    strides: list[int] = network.feature_info.reduction()  # type: ignore[operator, union-attr]
    channels: int = network.feature_info.channels()[-1]  # type: ignore[operator, union-attr]
    return Backbone(network, strides, channels, 1 if "output_stride" in options else max(strides))


def feature_maps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the maps (B,C,h,w) that a `Backbone.network` gives of images (B,3,H,W)."""
    maps: list[Tensor] = network(images)
    # Some transformers keep channels last; a `Format` of timm's is a string.
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return [x.permute(0, 3, 1, 2).contiguous() for x in maps]
    return maps


def _create(name: str, options: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    network: nn.Module = timm.create_model(
        name, features_only=True, out_indices=(-4, -3, -2, -1), pretrained=pretrained, **options
    )
    return network


_FOR_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {},
    # Swin: shifted windows at every stage, padded where they do not divide the map.
    {"strict_img_size": False, "always_partition": True},
    {"dynamic_img_size": True},
)
"""With which of these options a transformer of timm takes images of any size, only a try can tell."""


@functools.cache
def _options_for(name: str, output_stride: int) -> Mapping[str, Any]:
    """Return timm's options for feature maps at an output stride; raises ValueError where there are none."""
    found = _try_options(name, {"output_stride": output_stride})
    if not isinstance(found, str) and found.stride == output_stride:
        return found.options
    found = _for_any_size(name)
    if isinstance(found, str):
        raise ValueError(
            f"model.backbone: '{name}' gives no feature map at output stride {output_stride} for images of any size "
            f"({found}). {POSSIBLE}"
        )
    if found.stride != output_stride:
        fits = found.stride in OUTPUT_STRIDES
        remedy = f"set model.output_stride={found.stride}" if fits else "choose another backbone"
        raise ValueError(
            f"model.backbone: '{name}' gives no feature map at output stride {output_stride}: it cannot be dilated, "
            f"and its last map has a stride of {found.stride}; {remedy}. {POSSIBLE}"
        )
    return found.options


class _Fitting(NamedTuple):
    options: Mapping[str, Any]
    stride: int


@functools.cache
def _for_any_size(name: str) -> _Fitting | str:
    """Return with which options a network that is not dilated takes images of any size; else why it does not."""
    problems = []
    for options in _FOR_ANY_SIZE:
        found = _try_options(name, options)
        if not isinstance(found, str):
            return found
        problems.append(found)
    return problems[0]


def _try_options(name: str, options: Mapping[str, Any]) -> _Fitting | str:
    """Return the stride of the last map that a backbone of these options has; else what it raises.

    It is tried without weights, which costs no memory, on images of another size than it was made for.
    """
    try:
        with torch.device("meta"):
            return _Fitting(options, _try_other_size(_create(name, options)))
    except Exception as error:  # timm's models raise whatever comes to them
        reason = " ".join(str(error).split())[:200].rstrip(".")
        return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _try_other_size(network: nn.Module) -> int:
    """Return the stride of the last map; raises what the network raises, ValueError where a map has another size than
    its stride says.
    """
    strides: list[int] = network.feature_info.reduction()  # type: ignore[operator, union-attr]
    height, width = 3 * max(strides), 5 * max(strides)
    for stride, x in zip(strides, feature_maps(network, torch.empty(2, 3, height, width)), strict=True):
        expected = height // stride, width // stride
        if x.shape[2:] != expected:
            raise ValueError(
                f"a map of {tuple(x.shape[2:])} cells where {expected} are due at stride {stride}"
            )
    return strides[-1]


def possible_strides(name: str) -> list[int]:
    """Return the output strides that a backbone can have; raises ValueError where there is none."""
    _check_name(name)
    possible = []
    for stride in OUTPUT_STRIDES:
        try:
            _options_for(name, stride)
        except ValueError as error:
            problem = error
            continue
        possible.append(stride)
    if not possible:
        raise problem
    return possible


POSSIBLE = (
    "Convolutional networks that can be dilated fit at 8, 16 and 32 (resnet101, convnext_base, tf_efficientnet_lite0), "
    "other networks of four stages at 32 (swin_base_patch4_window7_224, pvt_v2_b2, densenet121), plain ViTs with "
    "patches of 16 pixels at 16 (vit_base_patch16_dinov3). docs/backbones.md lists what was tried; "
    "python -m tools.backbones NAME tries another"
)
"""What DeepLabV3 can be built on."""
POSSIBLE_VITS = (
    "Those of timm's VisionTransformer fit (vit_base_patch16_384, deit3_base_patch16_224, vit_base_patch14_dinov2, "
    "vit_base_patch16_siglip_512) and of its Eva (vit_base_patch16_dinov3, eva02_base_patch14_448, "
    "vit_base_patch16_rope_224); those whose attention is bound to one size do not (beit_*, vit_relpos_*, samvit_*), "
    "nor do hybrids. docs/backbones.md lists what was tried; "
    "python -m tools.backbones NAME --model segmenter tries another"
)
"""What Segmenter can be built on."""


def build_vit(
    name: str, pretrained: bool | str, image_size: int, patch_size: int | None = None
) -> VisionTransformer | Eva:
    """Return a plain ViT of timm without its head, position embeddings resized to `image_size` (the side, in pixels).

    Positions may be embeddings, rotary ones, or both; class and register tokens come first (`num_prefix_tokens`).
    pretrained: as in `build_backbone`. patch_size: None is the model's own, for another one the patch embedding is
    resized. Images of other sizes are taken too, the position embeddings resized as they come.
    Raises ValueError where timm has no such ViT, or it has no such weights.
    """
    _check_name(name)
    options: dict[str, Any] = {} if patch_size is None else {"patch_size": patch_size}
    no_vit = f"model.backbone: '{name}' is no plain ViT, which model.name segmenter needs. {POSSIBLE_VITS}"
    try:
        vit = timm.create_model(
            name,
            num_classes=0,
            img_size=image_size,
            dynamic_img_size=True,
            pretrained=pretrained is True,
            **options,
        )
        if not isinstance(vit, VisionTransformer | Eva) or not isinstance(vit.patch_embed, PatchEmbed):
            raise ValueError(no_vit)
        # Pooling by attention is a part of the head. A norm that comes after pooling stays: `vit_tokens` takes it.
        vit.reset_classifier(0, "")
    except (TypeError, AssertionError) as error:
        raise ValueError(no_vit) from error
    except ValueError:
        raise
    except Exception as error:
        if not pretrained:
            raise
        raise _not_fetched(name, error) from error
    if isinstance(pretrained, str):
        load_weights(vit, name, pretrained)
    return vit


def vit_tokens(vit: VisionTransformer | Eva, images: Tensor) -> Tensor:
    """Return the last block's normed patches (B,h·w,C) of images (B,3,H,W), sides multiples of the patch."""
    tokens: Tensor = vit.fc_norm(vit.forward_features(images))
    return tokens[:, vit.num_prefix_tokens :]


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
