"""Soft Dice: overlap of probabilities and labels, in which a small object weighs as much as a large one.

After Milletari et al. (V-Net, arXiv 1606.04797), with sums instead of sums of squares in the divisor.
"""

import torch
from torch import Tensor

SMOOTH = 1.0
"""Pixels added to both sides of the fraction: an object of one pixel has no gradient without bound."""


def soft_dice(
    probabilities: Tensor, labels: Tensor, first_class: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of 1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1), and how many are summed: images by classes they show.

    Σ runs over the labelled pixels of an image, t is 1 where the label is the class. Classes count from `first_class`
    on, in the images whose labels show them.

    probabilities: (B,K,H,W), float32 at least; labels: (B,H,W) int64.
    """
    is_labelled = (labels != ignore_index)[:, None]
    classes = torch.arange(first_class, probabilities.shape[1], device=labels.device)
    truth = (labels[:, None] == classes[:, None, None]).to(probabilities.dtype)
    expected = probabilities[:, first_class:] * is_labelled
    overlap = (expected * truth).sum(dim=(2, 3))
    size = truth.sum(dim=(2, 3))
    dice = (2 * overlap + SMOOTH) / (expected.sum(dim=(2, 3)) + size + SMOOTH)
    is_shown = size > 0
    return ((1 - dice) * is_shown).sum(), is_shown.sum()


def count_shown(labels: Tensor, first_class: int, num_classes: int) -> Tensor:
    """Return over how many pairs of image and class `soft_dice` sums, a scalar int64. labels: (B,H,W) int64."""
    classes = torch.arange(first_class, num_classes, device=labels.device)
    return (labels.flatten(1)[:, :, None] == classes).any(dim=1).sum()
