"""Label-guided output distillation: the old background's mass goes to the labelled class (MBS, 2407.11859)."""

import torch
from torch import Tensor, nn

from losses.reduction import mean_or_zero
from losses.softmax_terms import softmax_terms


def output_distillation(
    logits: Tensor, old_logits: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, int]:
    """Return −Σ q·log softmax(z) over pixels and channels, and the number of both (B·H·W·K).

    q is the old model's softmax, padded with zeros to K classes; where the given label is a new class c,
    the old background's probability is expected of c instead. Every pixel counts, ignored ones included:
    `ignore_index` only keeps 255 from being taken for a new class.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient; labels: (B,H,W) int64, as given.
    """
    heirs = background_heirs(labels, old_logits.shape[1], ignore_index)
    _, total = softmax_terms(logits, old_logits=old_logits, heirs=heirs)
    return total, logits.numel()


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
