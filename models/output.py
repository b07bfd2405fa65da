"""What every model returns."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class SegOutput(NamedTuple):
    """One forward pass; K classes known to the model, (h,w) its feature grid.

    logits: (B,K,H,W) at image size; grid_logits: (B,K,h,w) before upsampling; features: (B,D,h,w), what
    feature distillation compares; class_tokens: (K,D), one vector a class; class_embeddings: (B,K,D) where
    the model decodes classes per image, else None; stages: feature maps (B,C,h,w) of the backbone, fine to coarse,
    empty unless asked for; auxiliary_logits: (B,1,h,w) where the model has an auxiliary classifier, else None.
    """

    logits: Tensor
    grid_logits: Tensor
    features: Tensor
    class_tokens: Tensor
    class_embeddings: Tensor | None
    stages: tuple[Tensor, ...] = ()
    auxiliary_logits: Tensor | None = None


def upsample(grid_logits: Tensor, size: torch.Size) -> Tensor:
    """Bring logits (B,K,h,w) to image size (H,W), bilinearly."""
    return F.interpolate(grid_logits, size=size, mode="bilinear", align_corners=False)
