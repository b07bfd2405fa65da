"""utils/upsampling.py: pixels read block by block are those of bilinear interpolation, and so is their gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.output import upsample
from trainer.kernels import fixed_order
from utils.upsampling import RowReader, Upsampled, channels, interpolation, upsampled_like, whole

Size = tuple[int, int]

SIZES = [
    ((4, 4), (32, 32), (32, 32)),
    ((3, 5), (17, 40), (17, 40)),
    ((1, 1), (7, 9), (7, 9)),
    ((6, 4), (6, 4), (6, 4)),
    ((9, 8), (4, 3), (4, 3)),
    ((4, 3), (27, 20), (32, 24)),  # an image that was padded to whole cells
]
of_sizes = pytest.mark.parametrize(("cells", "size", "extent"), SIZES)


def random_grid(cells: Size, dtype: torch.dtype = torch.float64) -> Tensor:
    """A seeded grid (2,3,h,w) that needs a gradient."""
    grid = torch.randn(2, 3, *cells, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return grid.requires_grad_()


def plain(grid: Tensor, size: Size, extent: Size) -> Tensor:
    """PyTorch's interpolation, cropped."""
    pixels = F.interpolate(grid, size=extent, mode="bilinear", align_corners=False)
    return pixels[:, :, : size[0], : size[1]]


@of_sizes
def test_the_whole_has_the_values_and_gradients_of_interpolation(
    cells: Size, size: Size, extent: Size
) -> None:
    grid = random_grid(cells)
    ours, expected = Upsampled(grid, size, extent).whole(), plain(grid, size, extent)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((weights * x).sum(), grid)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@of_sizes
@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_blocks_have_them_too(cells: Size, size: Size, extent: Size, num_rows: int) -> None:
    grid = random_grid(cells)
    expected = plain(grid, size, extent)
    weights = torch.randn_like(expected)
    with torch.no_grad():
        reader = RowReader(grid, size, extent, torch.float64)
        for first in range(0, size[0], num_rows):
            rows = slice(first, min(first + num_rows, size[0]))
            for columns in (slice(0, size[1] // 2), slice(size[1] // 2, size[1])):
                block = reader.read(rows, columns)
                torch.testing.assert_close(block, expected[:, :, rows, columns], rtol=0, atol=1e-12)
                reader.add_gradient(weights[:, :, rows, columns], rows, columns)
    (gradient,) = torch.autograd.grad((weights * expected).sum(), grid)
    torch.testing.assert_close(reader.gradient(), gradient, rtol=1e-12, atol=1e-12)


def test_shares_of_cells_by_hand() -> None:
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert interpolation(2, 4, torch.device("cpu")).tolist() == expected


def test_a_pixel_by_hand() -> None:
    grid = torch.tensor([[[[0.0, 8.0], [4.0, 12.0]]]])
    pixels = Upsampled(grid, (4, 4), (4, 4))
    assert pixels.shape == (1, 1, 4, 4)
    assert pixels.whole()[0, 0, 1].tolist() == [1, 3, 7, 9]  # a quarter of the way down, then along
    assert whole(channels(pixels, slice(1))).equal(pixels.whole())
    assert upsampled_like(grid, pixels.whole()) == pixels


def test_a_fixed_order_takes_products_in_the_precision_of_the_logits() -> None:
    logits, size = random_grid((4, 4), torch.float32).detach(), torch.Size((16, 16))
    with fixed_order(True), torch.autocast("cpu", dtype=torch.bfloat16):
        fixed = upsample(logits, size)
    assert torch.equal(fixed, Upsampled(logits, (16, 16), (16, 16)).whole())
    assert fixed.dtype == torch.float32
