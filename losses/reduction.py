"""What every loss shares: the precision of its sums, and the mean over a selection that may be empty."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 where it already is: exponentials and sums need the range."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_or_zero(total: Tensor, count: Tensor | int) -> Tensor:
    """Return total / count, and total itself (a zero that keeps its graph) where the selection is empty.

    A count may be a sum of weights, below 1 too.
    """
    return total / (torch.where(count == 0, 1, count) if isinstance(count, Tensor) else count or 1)
