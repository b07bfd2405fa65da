"""What every model returns."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CLASSES_AT_ONCE = 8


class SegOutput(NamedTuple):
    """One forward pass; K classes known to the model, (h,w) its feature grid.

    logits: (B,K,H,W) at image size, None where not asked for; grid_logits: (B,K,h,w) before upsampling, of a
    model with an unknown class (B,K+1,h,w), that class last; features:
    (B,D,h,w), what feature distillation compares; class_tokens: (K,D), one vector a class; class_embeddings: (B,K,D)
    where the model decodes classes per image, else None; stages: feature maps (B,C,h,w) of the backbone, fine to
    coarse, each before the activation that ends it, if one does; empty unless asked for; backbone: its last map
    (B,C,h,w), as all that follows sees it, None where classes are solved;
    ears, head_outputs: what `models.residual_background.ResidualBackground` returns, empty where the model has none.
    """

    logits: Tensor | None
    grid_logits: Tensor
    features: Tensor
    class_tokens: Tensor
    class_embeddings: Tensor | None
    stages: tuple[Tensor, ...] = ()
    backbone: Tensor | None = None
    ears: tuple[Tensor, ...] = ()
    head_outputs: tuple[Tensor, ...] = ()

    def at_image_size(self) -> Tensor:
        """Return the logits (B,K,H,W) of a forward pass that was asked for them."""
        assert self.logits is not None, "the forward pass was not asked for logits at image size"
        return self.logits


def upsample(grid_logits: Tensor, size: torch.Size) -> Tensor:
    """Bring logits (B,K,h,w) to image size (H,W), bilinearly."""
    if torch.are_deterministic_algorithms_enabled():
        return upsample_by_products(grid_logits, size)
    return F.interpolate(grid_logits, size=size, mode="bilinear", align_corners=False)


def upsample_by_products(grid_logits: Tensor, size: torch.Size) -> Tensor:
    """`upsample` as two matrix products, whose gradients add up in a fixed order on GPUs as well."""
    rows, columns = (
        interpolation(cells, pixels, grid_logits.device).to(grid_logits.dtype)
        for cells, pixels in zip(grid_logits.shape[2:], size, strict=True)
    )
    # In the precision of the logits: autocast would take products in half of it.
    with torch.autocast(grid_logits.device.type, enabled=False):
        return rows @ (grid_logits @ columns.T)


def interpolation(num_cells: int, num_pixels: int, device: torch.device) -> Tensor:
    """Return the share (num_pixels, num_cells) float64 that each cell of a row has in each of its pixels.

    Pixels and cells have their values in their middles; pixels beyond the middles of the outer cells have theirs.
    """
    pixels, cells = (torch.arange(n, dtype=torch.float64, device=device) for n in (num_pixels, num_cells))
    middles = (pixels + 0.5) * (num_cells / num_pixels) - 0.5
    distances = middles.clamp(0, num_cells - 1)[:, None] - cells
    return (1 - distances.abs()).clamp(min=0)


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
