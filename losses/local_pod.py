"""Local POD: statistics of strips at several scales are kept (PLOP, arXiv 2011.11390, sec. 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.reduction import at_least_float32

SCALES = (1, 2, 4)


def pool_strips(features: Tensor, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Return (B,N): at every scale s, s x s regions' means over width of each row and over height of each column.

    All rows of one column of regions are the map averaged to width s, so two poolings a scale are all of them.
    Ours: where s does not divide a side, regions overlap as those of adaptive pooling do.
    features: (B,C,h,w).
    """
    height, width = features.shape[2:]
    pooled = [
        F.adaptive_avg_pool2d(features, size).flatten(1)
        for scale in scales
        for size in ((height, scale), (scale, width))
    ]
    return torch.cat(pooled, dim=1)


def local_pod(features: Tensor, old_features: Tensor) -> tuple[Tensor, int]:
    """Return the sum over images of the distance between pooled strips, and the number of images.

    Ours: the Euclidean distance itself, not its square, so that a term's gradient does not grow with the drift; maps
    are compared as they are (not squared, not normalised).
    features, old_features: (B,C,h,w); no gradient reaches old_features.
    """
    # Pooling is linear: one of the difference is the difference of two.
    difference = pool_strips(at_least_float32(features) - at_least_float32(old_features.detach()))
    return torch.linalg.vector_norm(difference, dim=1).sum(), len(features)
