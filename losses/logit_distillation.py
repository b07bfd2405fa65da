"""Plain distillation of the old classes' logits (LwF, arXiv 1606.09282; the output term of ILT, 1907.13372)."""

from torch import Tensor

from losses.reduction import at_least_float32


def logit_distillation(logits: Tensor, old_logits: Tensor) -> tuple[Tensor, int]:
    """Return −Σ p°·log softmax(z_old) over pixels and old channels, and the number of both (B·H·W·K_old).

    Both softmaxes run over the old classes alone, so the logits of new classes get no gradient. As in MiB's
    comparison (arXiv 2002.00718, sec. 5.1) and its released code: temperature 1, every pixel counts, the mean is over
    channels too.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient.
    """
    old_probabilities = at_least_float32(old_logits.detach()).softmax(dim=1)
    log_probabilities = at_least_float32(logits[:, : old_logits.shape[1]]).log_softmax(dim=1)
    return -(old_probabilities * log_probabilities).sum(), old_logits.numel()
