"""What every model returns."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.upsampling import Upsampled, upsampled, whole

_CLASSES_AT_ONCE = 8


class SegOutput(NamedTuple):
    """One forward pass; K classes known to the model, (h,w) its feature grid.

    pixel_logits: (B,K,H,W) at image size, in training before they are computed, None where not asked for; grid_logits:
    (B,K,h,w) before upsampling, of a model with an unknown class (B,K+1,h,w), that class last; features: (B,D,h,w),
    what feature distillation compares; class_tokens: (K,D), one vector a class; class_embeddings: (B,K,D) where
    the model decodes classes per image, else None; stages: feature maps (B,C,h,w) of the backbone, fine to coarse, each
    before the activation that ends it, if one does; empty unless asked for; backbone: its last map
    (B,C,h,w), as all that follows sees it, None where classes are solved;
    ears, head_outputs: what `models.residual_background.ResidualBackground` returns, empty where the model has none.
    """

    pixel_logits: Tensor | Upsampled | None
    grid_logits: Tensor
    features: Tensor
    class_tokens: Tensor
    class_embeddings: Tensor | None
    stages: tuple[Tensor, ...] = ()
    backbone: Tensor | None = None
    ears: tuple[Tensor, ...] = ()
    head_outputs: tuple[Tensor, ...] = ()

    @property
    def logits(self) -> Tensor:
        """The logits (B,K,H,W) at image size of a forward pass that was asked for them."""
        assert self.pixel_logits is not None, "the forward pass was not asked for logits at image size"
        return whole(self.pixel_logits)


def upsample(grid_logits: Tensor, size: torch.Size) -> Tensor:
    """Bring logits (B,K,h,w) to image size (H,W), bilinearly."""
    if torch.are_deterministic_algorithms_enabled():
        # The gradient of the other form adds up in any order on GPUs.
        return upsampled(grid_logits, size).whole()
    return F.interpolate(grid_logits, size=size, mode="bilinear", align_corners=False)


def most_likely(grid_logits: Tensor, size: torch.Size) -> Tensor:
    """Return the class (B,H,W) int64 that is largest at each pixel of upsampled logits (B,K,h,w), the first of equals.

    Classes are upsampled a few at a time: all of them at image size take most of evaluation's memory, and longer.
    """
    grid_logits = grid_logits.contiguous()  # few channels of channels_last are upsampled slowly
    highest, classes = upsample(grid_logits[:, :_CLASSES_AT_ONCE], size).max(dim=1)
    for first in range(_CLASSES_AT_ONCE, grid_logits.shape[1], _CLASSES_AT_ONCE):
        scores, found = upsample(grid_logits[:, first : first + _CLASSES_AT_ONCE], size).max(dim=1)
        classes = torch.where(scores > highest, found + first, classes)
        highest = torch.maximum(scores, highest)
    return classes
