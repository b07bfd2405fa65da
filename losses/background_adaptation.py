"""A step lowers the background's score where its classes are, and nowhere else (BARM, arXiv 2407.09838)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.binary_cross_entropy import soft_binary_cross_entropy
from losses.reduction import at_least_float32


def training_logits(outputs: Sequence[Tensor]) -> Tensor:
    """Return scores (B,K,h,w) in which only the newest step's have a gradient.

    Background is h_0[0] + Σ min(r_i, 0) + r_t: the newest residual is not clamped, which would end its gradient where
    it is positive. outputs: raw scores of every step, (B,1 + classes,h,w) each, residuals first; two steps at least.
    """
    *old, newest = outputs
    kept = [output.detach() for output in old]
    residuals = [output[:, :1].clamp(max=0) for output in kept[1:]]
    background = kept[0][:, :1] + sum(residuals) + newest[:, :1]
    return torch.cat([background, *(output[:, 1:] for output in (*kept, newest))], dim=1)


def adaptation_cross_entropy(residual: Tensor, is_new: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ softplus(r) over cells of new classes, where the residual must be very negative, and their number.

    residual: (B,h,w); is_new: (B,h,w) bool.
    """
    return F.softplus(at_least_float32(residual)).masked_fill(~is_new, 0).sum(), is_new.sum()


def adaptation_triplet(residual: Tensor, is_background: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ max(1 − 2σ(r), 0) over background cells, where the residual must not be negative, and their number.

    It is max((1 − σ)² − σ², 0). residual: (B,h,w); is_background: (B,h,w) bool.
    """
    hinge = (1 - 2 * at_least_float32(residual).sigmoid()).clamp(min=0)
    return hinge.masked_fill(~is_background, 0).sum(), is_background.sum()


def background_features(
    features: Sequence[Tensor], old_features: Sequence[Tensor], is_background: Tensor
) -> Tensor:
    """Return Σ (u − u°)² over background cells, channels and the ears that the old model has.

    features, old_features: (B,D,h,w) each; is_background: (B,h,w) bool.
    """
    pairs = zip(features[: len(old_features)], old_features, strict=True)
    differences = [at_least_float32(u) - at_least_float32(old.detach()) for u, old in pairs]
    return torch.stack([x.masked_fill(~is_background[:, None], 0).square().sum() for x in differences]).sum()


def group_distillation(outputs: Sequence[Tensor], old_outputs: Sequence[Tensor]) -> Tensor:
    """Return the sum over cells and channels of the binary cross-entropy of raw scores to σ of the old ones.

    The background and every residual are distilled as themselves. outputs, old_outputs: (B,1 + classes,h,w) each.
    """
    pairs = zip(outputs[: len(old_outputs)], old_outputs, strict=True)
    terms = [soft_binary_cross_entropy(x, at_least_float32(old.detach()).sigmoid()).sum() for x, old in pairs]
    return torch.stack(terms).sum()
