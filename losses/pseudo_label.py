"""Selective pseudo-labelling: what the old model may teach (MBS, arXiv 2407.11859)."""

import torch
from torch import Tensor, nn

from losses.reduction import at_least_float32, pixel_chunks


@torch.compiler.disable  # a compiler would unroll the loop over pieces
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
    """
    pseudo_labels, logits = labels.flatten(1).clone(), old_logits.detach().flatten(2)
    num_old = logits.shape[1]
    # Decreasing, so that the largest of equals is the first class; exact in floating point.
    rank = torch.arange(num_old, 0, -1, device=logits.device, dtype=torch.float32)[:, None]
    for pixels, (odds,) in pixel_chunks(logits, 1):
        # The old model's probabilities, but for their common divisor.
        peak = at_least_float32(logits[..., pixels].amax(dim=1, keepdim=True))
        torch.sub(logits[..., pixels], peak, out=odds).exp_()
        background, foreground = odds[:, 0].clone(), odds[:, 1:].sum(dim=1)
        is_sure = 1 / (background + foreground) >= threshold
        # The likeliest class has odds of exactly 1. PyTorch's own argmax takes several times as long on a CPU.
        old_class = num_old - odds.eq_(1).mul_(rank).amax(dim=1).long()
        is_background = pseudo_labels[:, pixels] == 0
        is_confident = is_background & (old_class != 0) & is_sure
        replaced = torch.where(is_confident, old_class, pseudo_labels[:, pixels])
        if ignore_unsure:
            is_unsure = is_background & ~is_confident & (background < foreground)
            replaced.masked_fill_(is_unsure, ignore_index)
        pseudo_labels[:, pixels] = replaced
    return pseudo_labels.view(labels.shape)


class SelectivePseudoLabel(nn.Module):
    """`select_pseudo_labels` with its threshold; (labels, old_logits) -> pseudo_labels."""

    def __init__(self, threshold: float = 0.7, ignore_index: int = 255, ignore_unsure: bool = True) -> None:
        super().__init__()
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.ignore_unsure = ignore_unsure

    def forward(self, labels: Tensor, old_logits: Tensor) -> Tensor:
        return select_pseudo_labels(labels, old_logits, self.threshold, self.ignore_index, self.ignore_unsure)
