"""What every loss shares: the precision of its sums, pieces of it, and the mean over a selection that may be empty."""

from collections.abc import Iterator

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 where it already is: exponentials and sums need the range."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_or_zero(total: Tensor, count: Tensor | int) -> Tensor:
    """Return total / count, and total itself (a zero that keeps its graph) where the selection is empty."""
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


def pixel_chunks(logits: Tensor) -> Iterator[slice]:
    """Yield slices of the last axis of (B,K,P) in which working memory stays small: in a CPU's cache, and on a GPU
    large enough to keep it busy."""
    batch, channels, num_pixels = logits.shape
    num_elements = 2**20 if logits.device.type == "cpu" else 2**24
    size = max(1, num_elements // max(1, batch * channels))
    for start in range(0, num_pixels, size):
        yield slice(start, min(start + size, num_pixels))
