"""Focal loss (Lin et al., arXiv 1708.02002): what is right already counts less, what is rare is not drowned."""

import torch.nn.functional as F
from torch import Tensor

from losses.reduction import at_least_float32


def focal_cross_entropy(
    logits: Tensor, labels: Tensor, gamma: float, first_class: int, ignore_index: int
) -> Tensor:
    """Return the sum of −(1 − p)^γ · log p over the pixels of classes from `first_class` on; p: softmax of the label.

    logits: (B,K,H,W); labels: (B,H,W) int64.
    """
    is_counted = (labels >= first_class) & (labels != ignore_index)
    log_p = at_least_float32(logits).log_softmax(dim=1)
    own = log_p.gather(1, labels.masked_fill(~is_counted, 0)[:, None])[:, 0]
    return (_focal(own, gamma)).masked_fill(~is_counted, 0).sum()


def binary_focal(logits: Tensor, labels: Tensor, gamma: float, first_class: int, ignore_index: int) -> Tensor:
    """Return the same of a sigmoid a class, summed over labelled pixels and the classes from `first_class` on.

    p is the sigmoid where the pixel shows the class, 1 minus it elsewhere. logits: (B,K,H,W); labels: (B,H,W) int64.
    """
    logits = at_least_float32(logits)[:, first_class:]
    target = labels.masked_fill(labels == ignore_index, 0)
    is_shown = F.one_hot(target, first_class + logits.shape[1]).permute(0, 3, 1, 2)[:, first_class:] > 0
    log_p = F.logsigmoid(logits.where(is_shown, -logits))
    return _focal(log_p, gamma).masked_fill((labels == ignore_index)[:, None], 0).sum()


def _focal(log_p: Tensor, gamma: float) -> Tensor:
    # 1 − p is 0 to rounding where p is 1, where a fractional power has no finite gradient.
    return -((1 - log_p.exp()).clamp(min=1e-6) ** gamma) * log_p
