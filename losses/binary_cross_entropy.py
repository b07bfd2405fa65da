"""One sigmoid a class, and the pseudo-labels of such a model (SSUL, arXiv 2106.11562)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.reduction import at_least_float32


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    weights: Tensor | None = None,
    first_class: int = 0,
    positive_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the sum over labelled pixels and classes of the binary cross-entropy, and the number of pixels.

    Every class from `first_class` on is asked whether the pixel shows it: all, background included (SSUL), or the new
    ones alone (DKD, arXiv 2210.05941, multi-label binary cross-entropy). As in the released code of both, it is summed
    over classes and averaged over pixels.

    logits: (B,K,H,W); labels: (B,H,W) int64; weights: (B,H,W), the pixels' factors, None for 1; positive_weight: factor
    of a class at the pixels that show it.
    """
    logits = at_least_float32(logits)
    is_labelled = labels != ignore_index
    is_shown = is_labelled & (labels >= first_class)
    # −log σ(z) where the class is shown, −log(1 − σ(z)) = −log σ(z) + z elsewhere.
    own = logits.gather(1, labels.masked_fill(~is_shown, 0)[:, None])[:, 0].masked_fill(~is_shown, 0)
    per_pixel = (F.softplus(logits[:, first_class:]).sum(dim=1) - own).masked_fill(~is_labelled, 0)
    if positive_weight != 1:
        per_pixel = per_pixel + (positive_weight - 1) * F.softplus(-own).masked_fill(~is_shown, 0)
    return (per_pixel if weights is None else weights * per_pixel).sum(), is_labelled.sum()


def soft_binary_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return −q·log σ(z) − (1 − q)·log(1 − σ(z)) of every element, in float32 at least.

    logits: z; probabilities: q, what is expected of σ(z), of the same shape.
    """
    logits = at_least_float32(logits)
    return F.softplus(logits) - probabilities * logits


def sigmoid_pseudo_labels(
    labels: Tensor, old_logits: Tensor, threshold: float, num_old: int | None = None
) -> Tensor:
    """Put the old model's likeliest class where the label is background and that class scores `threshold` (eq. 2).

    Everything else stays. labels: (B,H,W) int64; old_logits: (B,K_old,H,W), scores are their sigmoids, with those of
    further channels, of which none is taken over; num_old: K_old, None for all channels. Returns (B,H,W) int64.
    """
    score, old_class = at_least_float32(old_logits.detach()).sigmoid().max(dim=1)
    num_old = old_logits.shape[1] if num_old is None else num_old
    is_taken = (labels == 0) & (old_class != 0) & (old_class < num_old) & (score >= threshold)
    return torch.where(is_taken, old_class, labels)
