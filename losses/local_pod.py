"""Local POD: the old model's means over strips, at several scales, are distilled (PLOP, arXiv 2011.11390, sec. 3.2)."""

import torch
from torch import Tensor

from losses.reduction import at_least_float32

SCALES = (1, 2, 4)


def pool_strips(features: Tensor, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Return (B,N): for every scale s the map is cut into s x s regions, and each row and column of each is averaged.

    As in the released code, regions have h // s rows and w // s columns; rows and columns that remain, at the bottom
    and at the right, belong to none. Ours: a scale that exceeds a side is left out, where the released code fails.
    features: (B,C,h,w).
    """
    height, width = features.shape[2:]
    pooled = []
    for scale in scales:
        rows, columns = height // scale, width // scale
        if rows and columns:
            cut = features[:, :, : scale * rows, : scale * columns]
            regions = cut.unflatten(3, (scale, columns)).unflatten(2, (scale, rows))  # (B,C,s,rows,s,columns)
            pooled += [regions.mean(dim=5).flatten(1), regions.mean(dim=3).flatten(1)]
    return torch.cat(pooled, dim=1)


def local_pod(features: Tensor, old_features: Tensor) -> tuple[Tensor, int]:
    """Return the sum over images of the distance between pooled strips of squared values, and the number of images.

    As in the released code: the Euclidean distance itself, not its square, and strips that are not brought to length 1.
    features, old_features: (B,C,h,w); no gradient reaches old_features.
    """
    # Pooling is linear: one of the difference is the difference of two.
    new, old = at_least_float32(features), at_least_float32(old_features.detach())
    difference = pool_strips(new.square() - old.square())
    return torch.linalg.vector_norm(difference, dim=1).sum(), len(features)


def join_new_to_background(logits: Tensor, num_old: int) -> Tensor:
    """Return (B,K_old,h,w): the logits of new classes are added to that of background, which hid them before the step.

    They then have the old model's shape and can be compared with its logits. logits: (B,K,h,w).
    """
    background = logits[:, :1] + logits[:, num_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:num_old]], dim=1)
