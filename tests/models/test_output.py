"""models/output.py: upsampling as two matrix products is bilinear interpolation."""

import pytest
import torch
import torch.nn.functional as F

from models.output import interpolation, upsample, upsample_by_products
from trainer.kernels import fixed_order


@pytest.mark.parametrize(
    ("grid", "size"),
    [((4, 4), (32, 32)), ((3, 5), (17, 40)), ((1, 1), (7, 9)), ((6, 4), (6, 4)), ((9, 8), (4, 3))],
)
def test_products_give_the_values_and_gradients_of_interpolation(
    grid: tuple[int, int], size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *grid, generator=generator).requires_grad_()
    weights = torch.randn(2, 3, *size, generator=generator)
    plain = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    ours = upsample_by_products(logits, torch.Size(size))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad((weights * x).sum(), logits)[0] for x in (ours, plain)]
    scale = size[0] * size[1] / (grid[0] * grid[1])  # as many pixels add up in a cell
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6 * max(1.0, scale))


def test_shares_of_cells_by_hand() -> None:
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert interpolation(2, 4, torch.device("cpu")).tolist() == expected


def test_a_fixed_order_takes_products_in_the_precision_of_the_logits() -> None:
    logits, size = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.Size((16, 16))
    with fixed_order(True), torch.autocast("cpu", dtype=torch.bfloat16):
        fixed = upsample(logits, size)
    assert torch.equal(fixed, upsample_by_products(logits, size))
    assert fixed.dtype == torch.float32
