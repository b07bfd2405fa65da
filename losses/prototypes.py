"""What is kept of a class in feature space, and features drawn from it (STAR, NeurIPS 2023).

A feature f is its direction f/‖f‖ and its length ‖f‖. Of a class are kept: its direction μ (the prototype), the spread
σ of the directions around it, and mean ν and deviation τ of the lengths.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.reduction import at_least_float32


class ClassStatistics(NamedTuple):
    """Statistics of K classes, float32: prototypes and spreads (K,D), length_means and length_deviations (K,).

    All are 0 for a class without a cell; deviations are 0 for one with a single cell.
    """

    prototypes: Tensor
    spreads: Tensor
    length_means: Tensor
    length_deviations: Tensor


def labels_on_grid(labels: Tensor, size: torch.Size) -> Tensor:
    """Return the label (B,h,w) int64 at the middle of every cell of a grid (h,w). labels: (B,H,W) int64."""
    # Floating point because interpolate has no integer kernel; class ids are exact in it.
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def shares_on_grid(masks: Tensor, size: torch.Size) -> Tensor:
    """Return masks (B,H,W) bool brought to a grid (h,w) bilinearly, fractions (B,h,w) float32."""
    return F.interpolate(masks[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def class_sums(features: Tensor, cells: Tensor, num_classes: int) -> Tensor:
    """Return (K, 3 + 2D) float64, what `class_statistics` is made of; sums of batches and ranks add up.

    Of every class: the number of its cells, Σ ‖f‖, Σ ‖f‖², Σ f/‖f‖, Σ (f/‖f‖)². features: (B,D,h,w); cells: (B,h,w)
    int64, labels; those of `num_classes` and more do not count.
    """
    x = features.detach().permute(0, 2, 3, 1).flatten(0, 2).double()
    length, direction = x.norm(dim=1, keepdim=True), F.normalize(x, dim=1)
    rows = torch.cat([torch.ones_like(length), length, length.square(), direction, direction.square()], dim=1)
    is_of_class = cells.flatten()[None] == torch.arange(num_classes, device=cells.device)[:, None]
    return is_of_class.double() @ rows


def class_statistics(sums: Tensor, centres: Tensor | None = None) -> ClassStatistics:
    """Return the statistics that sums (K, 3 + 2D) of `class_sums` give.

    centres: (K,D) around which spreads are taken; None is the prototypes. The released code has there, from the first
    incremental step on, the prototypes of old classes, an index into the wrong list.
    """
    count, length, squared_length = sums[:, :3].unbind(dim=1)
    direction, squared = sums[:, 3:].chunk(2, dim=1)
    prototypes = F.normalize(direction, dim=1)
    centres = prototypes if centres is None else centres.double()
    at_least_one = count.clamp(min=1)
    around = squared - 2 * centres * direction + count[:, None] * centres.square()
    spreads = (around / at_least_one[:, None]).clamp(min=0).sqrt()
    means = length / at_least_one
    variances = (squared_length - count * means.square()) / (count - 1).clamp(min=1)
    deviations = torch.where(count > 1, variances.clamp(min=0).sqrt(), 0.0)
    return ClassStatistics(*(x.float() for x in (prototypes, spreads, means, deviations)))


def draw_features(
    statistics: ClassStatistics, classes: Tensor, noise: Tensor, length_noise: Tensor
) -> Tensor:
    """Return features (M,D), (μ + σ·ε)·(ν + τ·ε').

    classes: (M,) int64, rows of `statistics`. noise: ε (M,D); length_noise: ε' (M,1), normal numbers both. Ours: one ε'
    a feature, as lengths have one spread; the released code draws one a channel, (M,D).
    """
    prototypes, spreads, means, deviations = (x[classes] for x in statistics)
    return (prototypes + spreads * noise) * (means[:, None] + deviations[:, None] * length_noise)


def discrimination(
    features: Tensor, shares: Tensor, prototypes: Tensor, exists: Tensor, least_distance: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Return Σ 1 / min_c ‖e − μ_c‖ over the new classes that images show, and the number of these pairs.

    e is the direction of Σ f/‖f‖ over an image's cells of the class, weighed by their share of it. Ours: an image at a
    time, so that the gradient does not depend on how a batch is cut (the released code adds up the batch), and a
    distance of `least_distance` at least, below which nothing is gained. features: (B,D,h,w); shares: (B,K_new,h,w);
    prototypes: (C,D), of old classes; exists: (C,) bool, those that had a cell.
    """
    directions = F.normalize(at_least_float32(features), dim=1)
    centres = F.normalize(torch.einsum("bdhw,bkhw->bkd", directions, shares.to(directions.dtype)), dim=2)
    distances = (centres[:, :, None] - prototypes.to(centres.dtype)).norm(dim=3)
    nearest = distances.masked_fill(~exists, torch.inf).amin(dim=2).clamp(min=least_distance)
    is_shown = shares.sum(dim=(2, 3)) > 0
    return torch.where(is_shown, 1 / nearest, 0.0).sum(), is_shown.sum()
