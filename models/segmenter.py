"""Segmenter (Strudel et al., arXiv 2105.05633): a ViT of timm and a mask transformer whose class tokens grow."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.backbone import build_vit, vit_tokens
from models.base import MAX_CHANNELS, ModelOptions, SegmentationModel, Stages, Start
from models.output import SegOutput
from models.pretrained import load_decoder

LAYER_NORM_EPS = 1e-5
"""Of every LayerNorm in the authors' Segmenter. timm's default differs between versions and from this."""


class ClassTokens(nn.Module):
    """One parameter of class tokens a step, and the affine that ends each class's mask.

    channels: D. num_classes: classes of each step so far, background counted in the first.
    """

    def __init__(self, channels: int, num_classes: list[int]) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(
            trunc_normal_(torch.empty(count, channels), std=0.02) for count in num_classes
        )
        self.scales = nn.ParameterList(torch.ones(count) for count in num_classes)
        self.shifts = nn.ParameterList(torch.zeros(count) for count in num_classes)

    def grow(self, num_new: int, start: Start = "random") -> None:
        """Append `num_new` tokens (see `models.base.Start`); their affine is 1 and 0.

        shared_background: shifts are the biases here, and the affine of new classes is the background's. New classes
        and background then have equal shares; the norm over classes, which the new ones enter, lets their sum be the
        background's share approximately.
        """
        background = self.tokens[0].detach()[:1]
        if start != "random":
            tokens = background.repeat(num_new, 1)
        else:
            tokens = trunc_normal_(background.new_empty(num_new, background.shape[1]), std=0.02)
        self.tokens.append(nn.Parameter(tokens))
        self.scales.append(nn.Parameter(background.new_ones(num_new)))
        self.shifts.append(nn.Parameter(background.new_zeros(num_new)))
        if start == "shared_background":
            with torch.no_grad():
                self.shifts[0][:1].sub_(math.log(num_new + 1))
                for affine in (self.scales, self.shifts):
                    affine[-1].copy_(affine[0][:1].expand(num_new))

    def class_tokens(self) -> Tensor:
        """Return (K,D)."""
        return torch.cat(list(self.tokens))

    def forward(self, cosine: Tensor) -> Tensor:
        """Normalise (B,K,h,w) over the classes of each cell, then scale and shift every class (METHOD: masks)."""
        mean, std = cosine.mean(dim=1, keepdim=True), cosine.std(dim=1, keepdim=True)
        scale, shift = torch.cat(list(self.scales)), torch.cat(list(self.shifts))
        return (cosine - mean) / (std + 1e-5) * scale[:, None, None] + shift[:, None, None]


class MaskTransformer(nn.Module):
    """Transformer blocks over patches and class tokens together.

    Stochastic depth rises linearly over the blocks, from 0 to `drop_path`.
    Raises ValueError where the heads do not divide the channels.
    """

    def __init__(
        self, in_channels: int, channels: int, num_blocks: int, num_heads: int, drop_path: float
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(
                f"model.channels: {channels} is no multiple of the decoder's {num_heads} heads (model.num_heads)"
            )
        norm: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        self.embed = nn.Linear(in_channels, channels)
        rates = torch.linspace(0, drop_path, num_blocks).tolist()
        self.blocks = nn.ModuleList(
            Block(channels, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates
        )
        self.norm = norm(channels)
        self.project_patches = nn.Linear(channels, channels, bias=False)
        self.project_classes = nn.Linear(channels, channels, bias=False)
        self.apply(_initialise)
        for projection in (self.project_patches, self.project_classes):
            nn.init.normal_(projection.weight, std=channels**-0.5)

    def forward(self, patches: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B,N,C) and (K,D) -> projected patches (B,N,D) and class embeddings (B,K,D)."""
        x = self.embed(patches)
        num_patches = x.shape[1]
        x = torch.cat([x, class_tokens.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.project_patches(x[:, :num_patches]), self.project_classes(x[:, num_patches:])


class Segmenter(SegmentationModel):
    """A plain ViT and a mask transformer; a class's mask is the cosine of its embedding and every patch.

    The position embeddings are resized to the training crop (`image_size`); other sizes resize them as they come. A
    cell is a patch.
    """

    class Options(ModelOptions):
        """Segmenter's section of the config."""

        backbone: str = "vit_base_patch16_384"
        """Any plain ViT of timm, rotary positions and register tokens included (`docs/backbones.md`)."""
        channels: int = Field(768, ge=1, le=MAX_CHANNELS)
        """Width of the decoder, of the distilled features and of the class tokens."""
        patch_size: int | None = Field(None, ge=1, le=1024)
        """Side of a ViT's patch in pixels, where it is not to be the backbone's own."""
        num_blocks: int = Field(2, ge=1, le=100)
        """Transformer blocks of the decoder."""
        num_heads: int = Field(12, ge=1, le=MAX_CHANNELS)
        """Attention heads of each of them."""
        drop_path: float = Field(0.1, ge=0, lt=1)
        """Stochastic depth of the last of them; it rises linearly from 0."""

    trains_on_single_images = True
    maps = ("backbone", "head")

    def __init__(self, num_classes: list[int], options: Options, image_size: int = 512) -> None:
        super().__init__(num_classes, options, image_size)
        self.backbone = build_vit(options.backbone, options.pretrained, image_size, options.patch_size)
        for module in self.backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = LAYER_NORM_EPS
        self.cell = self.backbone.patch_embed.patch_size[0]
        self.decoder = MaskTransformer(
            self.backbone.embed_dim,
            options.channels,
            options.num_blocks,
            options.num_heads,
            options.drop_path,
        )
        if isinstance(options.pretrained, str):
            load_decoder(self.decoder, options.pretrained)
        self.classifier = ClassTokens(options.channels, num_classes)

    @property
    def num_classes(self) -> list[int]:
        return [len(tokens) for tokens in self.classifier.tokens]

    def grow(self, num_new: int, start: Start = "random") -> None:
        self.classifier.grow(num_new, start)

    def newest_parameters(self) -> list[nn.Parameter]:
        parts = (self.classifier.tokens, self.classifier.scales, self.classifier.shifts)
        return [part[-1] for part in parts]

    def forward(self, images: Tensor, with_stages: Stages = False, full_size: bool = True) -> SegOutput:
        if self.closed_form is not None:
            return self.solved_output(images, full_size)
        backbone = self._encode(images)
        features, class_embeddings = self._decode(backbone)
        grid_logits = self._masks(features, class_embeddings)
        logits = self.to_image_size(grid_logits, images.shape[2:]) if full_size else None
        tokens = self.classifier.class_tokens()
        return SegOutput(logits, grid_logits, features, tokens, class_embeddings, backbone=backbone)

    def named_maps(self, images: Tensor, names: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        backbone = self._encode(images)
        maps: dict[str, Sequence[Tensor]] = {"backbone": [backbone]}
        return maps | {"head": [self._decode(backbone)[0]]} if "head" in names else maps

    def _encode(self, images: Tensor) -> Tensor:
        """Return the backbone's patches (B,C,h,w)."""
        x = self.pad_to_cells(self.normalise(images))
        height, width = (side // self.cell for side in x.shape[2:])
        return vit_tokens(self.backbone, x).transpose(1, 2).unflatten(2, (height, width))

    def _decode(self, backbone: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected patches (B,D,h,w) and the class embeddings (B,K,D)."""
        encoded = backbone.flatten(2).transpose(1, 2)
        patches, class_embeddings = self.decoder(encoded, self.classifier.class_tokens())
        return patches.transpose(1, 2).unflatten(2, backbone.shape[2:]), class_embeddings

    def _masks(self, features: Tensor, class_embeddings: Tensor) -> Tensor:
        """(B,D,h,w) and (B,K,D) -> (B,K,h,w), in float32 at least: the norm magnifies what cosines differ by."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            patches = F.normalize(features.to(dtype), dim=1)
            classes = F.normalize(class_embeddings.to(dtype), dim=2)
            return self.classifier(torch.einsum("bkd,bdhw->bkhw", classes, patches))


def _initialise(module: nn.Module) -> None:
    """The initialisation of ViT."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
