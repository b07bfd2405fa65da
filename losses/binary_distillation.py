"""Distillation of the old classes' sigmoids (DKD, arXiv 2210.05941: its term of conventional distillation)."""

from torch import Tensor

from losses.binary_cross_entropy import soft_binary_cross_entropy
from losses.reduction import at_least_float32


def binary_distillation(
    logits: Tensor, old_logits: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, int]:
    """Return the sum over pixels and old classes of the binary cross-entropy to σ(z°), and the number of pixels.

    The paper's models have no classifier of the background, ours do: it is distilled like an old class, but where the
    labels show a new class, which the old model called background, its target is 0. Ours, too: every pixel counts,
    summed over classes as `binary_cross_entropy` is.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient; labels: (B,H,W) int64, as given.
    """
    num_old = old_logits.shape[1]
    targets = at_least_float32(old_logits.detach()).sigmoid()
    targets[:, 0].masked_fill_((labels >= num_old) & (labels != ignore_index), 0)
    return soft_binary_cross_entropy(logits[:, :num_old], targets).sum(), labels.numel()
