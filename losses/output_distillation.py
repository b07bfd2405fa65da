"""Label-guided output distillation: the old background's mass goes to the labelled class (MBS, 2407.11859)."""

import torch
from torch import Tensor, nn

from losses.reduction import at_least_float32, mean_or_zero


def output_distillation(
    logits: Tensor, old_logits: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, int]:
    """Return −Σ q·log softmax(z) over pixels and channels, and the number of both (B·H·W·K).

    q is the old model's softmax, padded with zeros to K classes; where the given label is a new class c,
    the old background's probability is expected of c instead. Every pixel counts, ignored ones included:
    `ignore_index` only keeps 255 from being taken for a new class.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient; labels: (B,H,W) int64, as given.
    `losses.fused.softmax_terms` computes the same faster.
    """
    num_old = old_logits.shape[1]
    old = at_least_float32(old_logits.detach()).softmax(dim=1)
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    heirs = background_heirs(labels, num_old, ignore_index)[:, None]
    expected = old[:, :1] * log_probabilities.gather(1, heirs)
    kept = (old[:, 1:] * log_probabilities[:, 1:num_old]).sum(dim=1, keepdim=True)
    return -(expected + kept).sum(), logits.numel()


def background_heirs(labels: Tensor, num_old: int, ignore_index: int) -> Tensor:
    """Class (B,H,W) int64 of which the old background's probability is expected: the labelled new one, or 0."""
    return torch.where((labels >= num_old) & (labels != ignore_index), labels, 0)


class LabelGuidedOutputDistillation(nn.Module):
    """`output_distillation`, averaged over pixels and channels; (logits, old_logits, labels) -> scalar."""

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, old_logits: Tensor, labels: Tensor) -> Tensor:
        return mean_or_zero(*output_distillation(logits, old_logits, labels, self.ignore_index))
