"""Logits at image size, read piece by piece: whole tensors of them, or a grid whose pixels are computed when read."""

from collections.abc import Iterator
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from utils.upsampling import RowReader, Upsampled

Logits = Tensor | Upsampled
"""Logits (B,K,H,W), floating point."""
Geometry = tuple[tuple[int, int], tuple[int, int]]
"""`size` and `extent` of an upsampled grid."""
NUM_ELEMENTS = {"cpu": 2**20}
"""Elements of a piece by type of device, 2²⁴ elsewhere."""


class LogitReader:
    """Reads pieces (B,K,n) of logits (B,K,P), and takes the gradients of these pieces.

    tensor: what is read. dtype: float32 at least, that of working memory and of what gradients add up in. row: pixels
    of a row, where pieces are whole rows or parts of one; 1 where they may begin and end anywhere.
    """

    row = 1

    def __init__(self, tensor: Tensor, shape: tuple[int, int, int]) -> None:
        self.tensor, self.shape, self.device = tensor, shape, tensor.device
        self.dtype = torch.promote_types(tensor.dtype, torch.float32)
        self.buffers: dict[str, Tensor] = {}

    def read(self, pixels: slice) -> Tensor:
        """Return a piece, which must not be written to, and which the next call overwrites."""
        raise NotImplementedError

    def gradient_of(self, pixels: slice) -> Tensor:
        """Return a place (B,K,n) for the gradient of a piece, with anything in it."""
        raise NotImplementedError

    def add(self, pixels: slice, gradient: Tensor) -> None:
        """Take over the gradient of a piece, as it stands in that place; every piece once."""
        raise NotImplementedError

    def gradient(self) -> Tensor:
        """Return the gradient of the tensor, of all pieces."""
        raise NotImplementedError

    def buffer(self, name: str, num_pixels: int) -> Tensor:
        """Return memory (B,K,n) that stays the same from piece to piece, as long as they do not grow."""
        batch, channels, _ = self.shape
        size = batch * channels * num_pixels
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.tensor.new_empty(size, dtype=self.dtype)
        return self.buffers[name][:size].view(batch, channels, num_pixels)


@overload
def arguments(logits: Logits) -> tuple[Tensor, Geometry | None]: ...
@overload
def arguments(logits: Logits | None) -> tuple[Tensor | None, Geometry | None]: ...
def arguments(logits: Logits | None) -> tuple[Tensor | None, Geometry | None]:
    """Return what an autograd function takes of logits: a tensor (B,K,P), or a grid and its geometry."""
    if logits is None:
        return None, None
    if isinstance(logits, Upsampled):
        return logits.grid, (logits.size, logits.extent)
    return logits.flatten(2), None


@overload
def open_logits(tensor: Tensor, geometry: Geometry | None) -> LogitReader: ...
@overload
def open_logits(tensor: Tensor | None, geometry: Geometry | None) -> LogitReader | None: ...
def open_logits(tensor: Tensor | None, geometry: Geometry | None) -> LogitReader | None:
    """Return the reader of what `arguments` has returned."""
    if tensor is None:
        return None
    return _Whole(tensor) if geometry is None else _OfGrid(tensor, *geometry)


class _Whole(LogitReader):
    """Of a tensor (B,K,P)."""

    def __init__(self, logits: Tensor) -> None:
        batch, channels, num_pixels = logits.shape
        super().__init__(logits, (batch, channels, num_pixels))

    @cached_property
    def _gradients(self) -> Tensor:
        return torch.empty_like(self.tensor)

    def read(self, pixels: slice) -> Tensor:
        return self.tensor[..., pixels]

    def gradient_of(self, pixels: slice) -> Tensor:
        if self.tensor.dtype == self.dtype:
            return self._gradients[..., pixels]
        # Half precision needs a wider place to add up in.
        return self.buffer("gradient", pixels.stop - pixels.start)

    def add(self, pixels: slice, gradient: Tensor) -> None:
        if self.tensor.dtype != self.dtype:
            self._gradients[..., pixels] = gradient

    def gradient(self) -> Tensor:
        return self._gradients


class _OfGrid(LogitReader):
    """Of a grid (B,K,h,w); no tensor of the image's size is made."""

    def __init__(self, grid: Tensor, size: tuple[int, int], extent: tuple[int, int]) -> None:
        super().__init__(grid, (grid.shape[0], grid.shape[1], size[0] * size[1]))
        self.row = size[1]
        self.reader = RowReader(grid, size, extent, self.dtype)

    def read(self, pixels: slice) -> Tensor:
        piece = self.buffer("logits", pixels.stop - pixels.start)
        block, rows, columns = self._block(piece, pixels)
        self.reader.read(rows, columns, out=block)
        return piece

    def gradient_of(self, pixels: slice) -> Tensor:
        return self.buffer("gradient", pixels.stop - pixels.start)

    def add(self, pixels: slice, gradient: Tensor) -> None:
        self.reader.add_gradient(*self._block(gradient, pixels))

    def gradient(self) -> Tensor:
        return self.reader.gradient()

    def _block(self, piece: Tensor, pixels: slice) -> tuple[Tensor, slice, slice]:
        """A piece of whole rows, or of a part of one, as a block (B,K,rows,columns), and its rows and columns."""
        first, begin = divmod(pixels.start, self.row)
        last, end = divmod(pixels.stop - 1, self.row)
        block = piece.unflatten(2, (last + 1 - first, end + 1 - begin))
        return block, slice(first, last + 1), slice(begin, end + 1)


def pixel_chunks(
    num_buffers: int, logits: LogitReader, *others: LogitReader | None
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Cut the pixels of (B,K,P) logits into slices, each with working memory (B,K,n), float32 at least.

    others: logits (B,K',P) that are read in the same pieces. A slice is so short that work on it stays in a CPU's
    cache, and on a GPU so long that it keeps it busy. The memory is the same for all slices: on a CPU, touching fresh
    memory takes longer than filling it.
    """
    batch, channels, num_pixels = logits.shape
    num_elements = NUM_ELEMENTS.get(logits.device.type, 2**24)
    size = min(num_pixels, max(1, num_elements // max(1, batch * channels)))
    row = max(reader.row for reader in (logits, *others) if reader is not None)
    size = size // row * row or size
    buffers = [
        torch.empty(batch, channels, size, device=logits.device, dtype=logits.dtype)
        for _ in range(num_buffers)
    ]
    for block in range(0, num_pixels, max(row, size)):
        end = min(block + max(row, size), num_pixels)
        for start in range(block, end, max(1, size)):
            stop = min(start + size, end)
            yield slice(start, stop), [buffer[..., : stop - start] for buffer in buffers]
