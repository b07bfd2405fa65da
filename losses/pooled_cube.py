"""Pooled cube distillation: the old model's maps, pooled over squares and over channels (RCIL, arXiv 2203.05402)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.reduction import at_least_float32

KERNELS = (4, 8, 12, 16, 20, 24)


def spatial_distances(difference: Tensor, kernels: tuple[int, ...] = KERNELS) -> Tensor:
    """Return (kernels,B): the Euclidean norm of each image's map, averaged over k x k squares one cell apart.

    Zeros pad it by k/2 on each side and count in the average. difference: (B,C,h,w).
    """
    height, width = difference.shape[2:]

    def averaged(kernel: int) -> Tensor:
        # A pooling would look at every square cell by cell, 576 times at k = 24.
        rows, columns = (averages(length, kernel, difference) for length in (height, width))
        return rows @ (difference @ columns.T)

    return torch.stack([torch.linalg.vector_norm(averaged(k).flatten(1), dim=1) for k in kernels])


def averages(length: int, kernel: int, like: Tensor) -> Tensor:
    """Return the matrix (windows,length), of like's type, that averages `kernel` cells a window, zeros beside them."""
    num_windows = length + 2 * (kernel // 2) - kernel + 1
    first = torch.arange(num_windows, device=like.device)[:, None] - kernel // 2
    cells = torch.arange(length, device=like.device)
    return ((cells >= first) & (cells < first + kernel)).to(like.dtype) / kernel


def channel_distances(difference: Tensor) -> Tensor:
    """Return (B,): the norm of each image's map, averaged over every three neighbouring channels, zeros at the ends."""
    padded = F.pad(difference, (0, 0, 0, 0, 1, 1))
    pooled = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    return torch.linalg.vector_norm(pooled.flatten(1), dim=1)


def pooled_cube(features: Tensor, old_features: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the spatial and the channel part of a map, sums over images of norms (not squared), and the images.

    Maps are squared first; the spatial part is a mean over kernels. features, old_features: (B,C,h,w); no gradient
    reaches old_features.
    """
    # Pooling is linear: one of the difference is the difference of two.
    difference = at_least_float32(features).square() - at_least_float32(old_features.detach()).square()
    return (
        spatial_distances(difference).mean(dim=0).sum(),
        channel_distances(difference).sum(),
        len(features),
    )
