"""Selective pseudo-labelling: what the old model may teach (MBS, arXiv 2407.11859)."""

import torch
from torch import Tensor, nn

from losses.reduction import at_least_float32


def select_pseudo_labels(
    labels: Tensor, old_logits: Tensor, threshold: float, ignore_index: int, ignore_unsure: bool = True
) -> Tensor:
    """Fill the background of a step's labels with what the old model is sure of.

    At background pixels, p being the old model's probabilities: a confident old class replaces the label;
    where the old classes together outweigh the background but none is confident, the pixel is ignored;
    elsewhere, and at every other label, the label stays.
    ignore_unsure: False leaves out the second of these, as plain pseudo-labelling does: what no old class is sure of
    stays background.

    labels: (B,H,W) int64, 0 background, new classes >= K_old, `ignore_index` kept.
    old_logits: (B,K_old,H,W) floating point. Returns (B,H,W) int64 without gradient.
    `losses.fused.select_pseudo_labels_in_pieces` computes the same faster.
    """
    p = at_least_float32(old_logits.detach()).softmax(dim=1)
    probability, old_class = p.max(dim=1)
    is_background = labels == 0
    is_confident = is_background & (old_class != 0) & (probability >= threshold)
    is_unsure = is_background & ~is_confident & (p[:, 0] < p[:, 1:].sum(dim=1))
    selected = torch.where(is_confident, old_class, labels)
    return selected.masked_fill(is_unsure, ignore_index) if ignore_unsure else selected


class SelectivePseudoLabel(nn.Module):
    """`select_pseudo_labels` with its threshold; (labels, old_logits) -> pseudo_labels."""

    def __init__(self, threshold: float = 0.7, ignore_index: int = 255, ignore_unsure: bool = True) -> None:
        super().__init__()
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.ignore_unsure = ignore_unsure

    def forward(self, labels: Tensor, old_logits: Tensor) -> Tensor:
        return select_pseudo_labels(labels, old_logits, self.threshold, self.ignore_index, self.ignore_unsure)
