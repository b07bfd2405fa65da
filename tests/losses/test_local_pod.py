"""losses/local_pod.py: strips region by region, as the paper words them, and a distance by hand."""

import math

import pytest
import torch
from torch import Tensor

from losses.local_pod import join_new_to_background, local_pod, pool_strips


def strips_region_by_region(features: Tensor, scale: int) -> Tensor:
    """For each of scale x scale regions: the means of its rows and of its columns, (B, …) in some order."""
    height, width = features.shape[2] // scale, features.shape[3] // scale
    strips = []
    for i in range(scale):
        for j in range(scale):
            region = features[:, :, i * height : (i + 1) * height, j * width : (j + 1) * width]
            strips += [region.mean(dim=3).flatten(1), region.mean(dim=2).flatten(1)]
    return torch.cat(strips, dim=1)


@pytest.mark.parametrize("size", [(8, 12), (9, 15), (17, 5), (4, 4)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_scale_holds_the_rows_and_columns_of_all_its_regions(scale: int, size: tuple[int, int]) -> None:
    features = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, slow = pool_strips(features, (scale,)), strips_region_by_region(features, scale)
    torch.testing.assert_close(ours.sort(dim=1).values, slow.sort(dim=1).values)


def test_the_distance_of_an_image_by_hand() -> None:
    # One channel, 2 x 2, squares 1, 9, 0 and 4.
    features = torch.tensor([[[[1.0, -3.0], [0.0, 2.0]]]])
    whole = 5.0**2 + 2.0**2 + 0.5**2 + 6.5**2  # rows, then columns
    quarters = 2 * (
        1.0**2 + 9.0**2 + 4.0**2
    )  # a region is a pixel, its row and its column; 4 exceeds the sides
    total, count = local_pod(features, torch.zeros_like(features))
    assert float(total) == pytest.approx(math.sqrt(whole + quarters))
    assert count == 1


def test_distances_of_images_add_up_and_equal_maps_have_none_and_a_finite_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 2, 5, 7, generator=generator).requires_grad_()
    old_features = torch.randn(3, 2, 5, 7, generator=generator).requires_grad_()
    total, count = local_pod(features, old_features)
    parts = [local_pod(features[i : i + 1], old_features[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(total, torch.stack(parts).sum())
    assert count == 3
    assert torch.autograd.grad(total, old_features, allow_unused=True) == (None,)
    total, _ = local_pod(features, features.detach())
    assert float(total) == 0
    assert not torch.autograd.grad(total, features)[0].any()


def test_half_precision_is_summed_in_single() -> None:
    features = torch.full((1, 4, 8, 8), 256.0, dtype=torch.float16)
    total, _ = local_pod(features, torch.zeros_like(features))
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(256**2 * math.sqrt(4 * 2 * 8 * 7)), (
        "the squares alone are too large for 16"
    )


def test_new_classes_join_the_background_that_hid_them() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0]).view(1, 5, 1, 1)
    assert join_new_to_background(logits, 3).flatten().tolist() == [31.0, 2.0, 3.0]
    assert join_new_to_background(logits[:, :3], 3).flatten().tolist() == [1.0, 2.0, 3.0], "no new class"
