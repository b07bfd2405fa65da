"""What losses share: precision of sums, classes of labels, and the mean over a selection that may be empty."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 where it already is: exponentials and sums need the range."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def split_labels(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return classes of the labels' shape, some class where there is none, and whether there is one."""
    is_labelled = labels != ignore_index
    return labels * is_labelled, is_labelled


def mean_or_zero(total: Tensor, count: Tensor | int) -> Tensor:
    """Return total / count, and total itself (a zero that keeps its graph) where the selection is empty.

    A count may be a sum of weights, below 1 too.
    """
    return total / (torch.where(count == 0, 1, count) if isinstance(count, Tensor) else count or 1)
