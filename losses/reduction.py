"""What every loss shares: the precision of its sums, pieces of it, and the mean over a selection that may be empty."""

from collections.abc import Iterator

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


def pixel_chunks(logits: Tensor, num_buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Cut the pixels of (B,K,P) logits into slices, each with working memory (B,K,n), float32 at least.

    A slice is so short that work on it stays in a CPU's cache, and on a GPU so long that it keeps it busy. The memory
    is the same for all slices: on a CPU, touching fresh memory takes longer than filling it.
    """
    batch, channels, num_pixels = logits.shape
    num_elements = 2**20 if logits.device.type == "cpu" else 2**24
    size = min(num_pixels, max(1, num_elements // max(1, batch * channels)))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    buffers = [
        torch.empty(batch, channels, size, device=logits.device, dtype=dtype) for _ in range(num_buffers)
    ]
    for start in range(0, num_pixels, max(1, size)):
        stop = min(start + size, num_pixels)
        yield slice(start, stop), [buffer[..., : stop - start] for buffer in buffers]
