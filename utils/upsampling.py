"""Bilinear upsampling of a grid, a few rows of pixels at a time: nothing of the image's size need be there at once.

A row of pixels lies between two rows of cells. So rows of pixels are a product of a narrow band of a matrix with the
cells of that band, which takes a CPU a few times less than `F.interpolate`, and its gradient adds up in a fixed order.
"""

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Upsampled(NamedTuple):
    """The values (B,K,H,W) of an image's pixels that a grid (B,K,h,w) stands for, before they are computed.

    extent: pixels (H',W') that the grid covers; size: those of the image (H,W), its upper left part, or all of it.
    Pixels and cells have their values in their middles; pixels beyond the middles of the outer cells have theirs.
    """

    grid: Tensor
    size: tuple[int, int]
    extent: tuple[int, int]

    @property
    def shape(self) -> torch.Size:
        """(B,K,H,W)."""
        return torch.Size((*self.grid.shape[:2], *self.size))

    @property
    def dtype(self) -> torch.dtype:
        """That of the grid."""
        return self.grid.dtype

    def detach(self) -> "Upsampled":
        """Return the same of the grid without gradient."""
        return self._replace(grid=self.grid.detach())

    def whole(self) -> Tensor:
        """Return the values (B,K,H,W), all at once."""
        return RowReader(*self, self.dtype).read(slice(0, self.size[0]))


def upsampled(grid: Tensor, size: torch.Size) -> Upsampled:
    """Return the values (B,K,H,W) of an image of this size, all of which the grid covers."""
    height, width = size
    return Upsampled(grid, (height, width), (height, width))


def upsampled_like(grid: Tensor, pixels: Tensor | Upsampled) -> Upsampled:
    """Return a grid upsampled as the one of `pixels` is, or to its size where that is a tensor (B,K,H,W)."""
    if isinstance(pixels, Upsampled):
        return pixels._replace(grid=grid)
    return upsampled(grid, pixels.shape[2:])


def channels(pixels: Tensor | Upsampled, chosen: slice) -> Tensor | Upsampled:
    """Return some channels of values (B,K,H,W)."""
    if isinstance(pixels, Upsampled):
        return pixels._replace(grid=pixels.grid[:, chosen])
    return pixels[:, chosen]


def whole(pixels: Tensor | Upsampled) -> Tensor:
    """Return values (B,K,H,W) as a tensor."""
    return pixels.whole() if isinstance(pixels, Upsampled) else pixels


class RowReader:
    """Reads blocks of pixels of an upsampled grid; dtype: what it computes in.

    What is read can be differentiated as products can. Who knows the gradient adds it block by block instead.
    """

    def __init__(
        self, grid: Tensor, size: tuple[int, int], extent: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.scale = grid.shape[2] / extent[0]
        self.rows, self.columns = (
            interpolation(cells, pixels, grid.device)[:shown].to(dtype)
            for cells, pixels, shown in zip(grid.shape[2:], extent, size, strict=True)
        )
        self.grid_dtype = grid.dtype
        self.wide = self._product(grid.to(dtype), self.columns.T)

    @cached_property
    def _wide_gradient(self) -> Tensor:
        """Gradient of `wide`, of all that was added."""
        return torch.zeros_like(self.wide)

    def read(self, rows: slice, columns: slice = slice(None), out: Tensor | None = None) -> Tensor:
        """Return the pixels (B,K,n,m) of these rows and columns, in `out` if it is given."""
        cells = self._cells(rows)
        return self._product(self.rows[rows, cells], self.wide[:, :, cells, columns], out)

    def add_gradient(self, gradient: Tensor, rows: slice, columns: slice = slice(None)) -> None:
        """Add the gradient (B,K,n,m) of these pixels to that of the grid."""
        cells = self._cells(rows)
        self._wide_gradient[:, :, cells, columns] += self._product(self.rows[rows, cells].T, gradient)

    def gradient(self) -> Tensor:
        """Return the gradient (B,K,h,w) of the grid, of all that was added."""
        return self._product(self._wide_gradient, self.columns).to(self.grid_dtype)

    def _cells(self, rows: slice) -> slice:
        """Rows of cells between which these rows of pixels lie."""
        first, last = (
            max(0, math.floor((row + 0.5) * self.scale - 0.5)) for row in (rows.start, rows.stop - 1)
        )
        return slice(min(first, self.wide.shape[2] - 1), last + 2)

    def _product(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """Matrix product in the precision of its factors: autocast would take it in half of it."""
        with torch.autocast(a.device.type, enabled=False):
            return torch.matmul(a, b, out=out)


def interpolation(num_cells: int, num_pixels: int, device: torch.device) -> Tensor:
    """Return the share (num_pixels, num_cells) float64 that each cell of a row has in each of its pixels."""
    pixels, cells = (torch.arange(n, dtype=torch.float64, device=device) for n in (num_pixels, num_cells))
    middles = (pixels + 0.5) * (num_cells / num_pixels) - 0.5
    distances = middles.clamp(0, num_cells - 1)[:, None] - cells
    return (1 - distances.abs()).clamp(min=0)
