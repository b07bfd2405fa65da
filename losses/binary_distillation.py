"""Distillation of the old classes' sigmoids (DKD, arXiv 2210.05941: its term of conventional distillation)."""

from torch import Tensor

from losses.binary_cross_entropy import soft_binary_cross_entropy
from losses.reduction import at_least_float32


def binary_distillation(logits: Tensor, old_logits: Tensor) -> tuple[Tensor, int]:
    """Return the sum over pixels and old classes of the binary cross-entropy to σ(z°), and the number of pixels.

    As in the released code, every pixel counts, and background, which it does not classify, takes no part.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient.
    """
    num_old = old_logits.shape[1]
    targets = at_least_float32(old_logits.detach()[:, 1:]).sigmoid()
    return soft_binary_cross_entropy(logits[:, 1:num_old], targets).sum(), logits[:, 0].numel()
