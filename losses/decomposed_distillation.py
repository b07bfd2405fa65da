"""Distillation of the positive and the negative part of every logit (DKD, arXiv 2210.05941)."""

import torch
from torch import Tensor

from losses.binary_cross_entropy import soft_binary_cross_entropy
from losses.reduction import at_least_float32


def reasoning_scores(features: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative reasoning score (B,K,h,w) of every class in every cell.

    A logit is z = w·f + b. z⁺ is the sum of the products w_d·f_d that are positive, z⁻ that of the negative ones, so
    z = z⁺ + z⁻ + b; the bias belongs to neither. features: (B,D,h,w); class_tokens: (K,D), the rows w.
    """
    features, tokens = at_least_float32(features), at_least_float32(class_tokens)
    # A product is positive where both factors are positive or both negative.
    above, below = (torch.cat([x.relu(), (-x).relu()], dim=1) for x in (features, -features))
    signed_tokens = torch.cat([tokens.relu(), (-tokens).relu()], dim=1)
    positive = torch.einsum("bdhw,kd->bkhw", above, signed_tokens)
    negative = -torch.einsum("bdhw,kd->bkhw", below, signed_tokens)
    return positive, negative


def decomposed_distillation(
    features: Tensor, class_tokens: Tensor, old_features: Tensor, old_class_tokens: Tensor
) -> tuple[Tensor, int]:
    """Return the sum over cells and old classes of the distillation of both scores, and the number of cells (B·h·w).

    Each is the binary cross-entropy between the sigmoids of the model's score and of the old model's: a model that kept
    z alone could raise one part and lower the other. As in the released code, background, which it does not classify,
    takes no part, both scores weigh the same, and they are compared on the feature grid.

    features, old_features: (B,D,h,w); class_tokens: (K,D); old_class_tokens: (K_old,D). The old ones
    get no gradient.
    """
    num_old = len(old_class_tokens)
    scores = reasoning_scores(features, class_tokens[1:num_old])
    old_scores = reasoning_scores(old_features.detach(), old_class_tokens[1:].detach())
    positive, negative = (
        soft_binary_cross_entropy(new, old.sigmoid()).sum()
        for new, old in zip(scores, old_scores, strict=True)
    )
    return positive + negative, features[:, 0].numel()
