"""Orthogonal loss: new class tokens keep clear of every other class (MBS, arXiv 2407.11859)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.reduction import at_least_float32


def orthogonality(class_tokens: Tensor, num_new: int) -> Tensor:
    """Mean of |ê_i · stopgrad(ê_j)| over every new class i and every other class j (background, old, new).

    class_tokens: (K,D), the last `num_new` rows being the new classes. Returns a scalar (float32 at least);
    no new class gives a zero connected to the tokens.
    """
    tokens = at_least_float32(class_tokens)
    num_classes = len(tokens)
    # Not a matrix product of normalised tokens: autocast would take that in half precision.
    cosine = F.cosine_similarity(tokens[num_classes - num_new :, None], tokens.detach(), dim=-1)
    classes = torch.arange(num_classes, device=tokens.device)
    is_other = classes[num_classes - num_new :, None] != classes
    return (cosine.abs() * is_other).sum() / max(num_new * (num_classes - 1), 1)


class OrthogonalLoss(nn.Module):
    """`orthogonality` × K_new / K; (class_tokens, num_new) -> scalar."""

    def forward(self, class_tokens: Tensor, num_new: int) -> Tensor:
        return orthogonality(class_tokens, num_new) * (num_new / len(class_tokens))
