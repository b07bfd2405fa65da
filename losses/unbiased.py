"""Cross-entropy and distillation that know what a step's background hides (MiB, arXiv 2002.00718)."""

import torch
from torch import Tensor

from losses.reduction import at_least_float32


def unbiased_cross_entropy(
    logits: Tensor, labels: Tensor, num_old: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of −log q over labelled pixels, and their number (eq. 4 and 5).

    q is the probability of the label; of background it is that of background and all old classes together, any of
    which a step's labels call background. As in the released code, old classes that are labelled, as those of images in
    memory, count as background.

    logits: (B,K,H,W); labels: (B,H,W) int64; num_old: K_old.
    """
    logits = at_least_float32(logits)
    is_labelled = labels != ignore_index
    own = logits.gather(1, labels.masked_fill(~is_labelled, 0)[:, None])[:, 0]
    expected = torch.where(labels < num_old, logits[:, :num_old].logsumexp(dim=1), own)
    per_pixel = (logits.logsumexp(dim=1) - expected).masked_fill(~is_labelled, 0)
    return per_pixel.sum(), is_labelled.sum()


def unbiased_distillation(logits: Tensor, old_logits: Tensor) -> tuple[Tensor, int]:
    """Return −Σ p°·log q over pixels and old channels, and the number of both (B·H·W·K_old) (eq. 8 and 9).

    p° is the old model's softmax; q the model's over old classes, its background joined by all new classes, which
    the old model took for background.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient.
    """
    logits, num_old = at_least_float32(logits), old_logits.shape[1]
    old_probabilities = at_least_float32(old_logits.detach()).softmax(dim=1)
    background = torch.cat([logits[:, :1], logits[:, num_old:]], dim=1).logsumexp(dim=1, keepdim=True)
    merged = torch.cat([background, logits[:, 1:num_old]], dim=1)
    log_probabilities = merged - logits.logsumexp(dim=1, keepdim=True)
    return -(old_probabilities * log_probabilities).sum(), old_logits.numel()
