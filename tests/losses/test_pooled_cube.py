"""losses/pooled_cube.py: by hand, against the authors' values, and where gradients go."""

import pytest
import torch

from losses.local_pod import join_new_to_background
from losses.pooled_cube import KERNELS, channel_distances, pooled_cube, spatial_distances
from tests.support.golden import assert_matches_golden, load_method_golden


def test_one_pixel_by_hand() -> None:
    spatial, _, count = pooled_cube(torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1))
    assert spatial.item() == pytest.approx(0.0932118, abs=1e-7)
    assert count == 1
    distances = spatial_distances(torch.full((1, 1, 1, 1), 3.0))[:, 0]
    torch.testing.assert_close(distances, torch.tensor([2 * 3 / k**2 for k in KERNELS]))


@pytest.mark.parametrize(("height", "width"), [(5, 9), (32, 30)])
def test_squares_are_averaged_as_by_a_pooling(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)).double()
    kernels = (3, *KERNELS)
    pooled = [torch.nn.functional.avg_pool2d(x, k, stride=1, padding=k // 2) for k in kernels]
    expected = torch.stack([x.square().sum(dim=(1, 2, 3)).sqrt() for x in pooled])
    torch.testing.assert_close(spatial_distances(x, kernels), expected, rtol=1e-12, atol=0)


def test_triples_of_channels_by_hand() -> None:
    old, new = (torch.tensor(x).view(1, 3, 1, 1) for x in ([1.0, 2.0, 0.0], [2.0, 2.0, 1.0]))
    assert pooled_cube(new, old)[1].item() == pytest.approx(1.69967, abs=1e-5)


def test_norms_of_a_map_are_those_of_the_released_code() -> None:
    golden = load_method_golden("RCIL")
    found = spatial_distances(golden["new.1"].square() - golden["old.1"].square())
    for kernel, distances in zip(KERNELS, found, strict=True):
        assert_matches_golden(distances, golden[f"layer1.kernel{kernel}"])


@pytest.mark.parametrize("kind", ["spatial", "channel"])
@pytest.mark.parametrize(("data", "weight", "last"), [("voc", 0.01, 5e-4), ("ade", 5e-6, 5e-7)])
def test_losses_and_gradients_are_those_of_the_released_code(
    kind: str, data: str, weight: float, last: float
) -> None:
    golden = load_method_golden("RCIL")
    maps = [golden[f"new.{i}"].clone().requires_grad_() for i in range(4)]
    news = [*maps[:3], join_new_to_background(maps[3], 4)][: 4 if kind == "spatial" else 3]
    pairs = [pooled_cube(new, golden[f"old.{i}"])[:2] for i, new in enumerate(news)]
    parts = [pair[kind == "channel"] / 2 for pair in pairs]
    weights = [weight] * (len(parts) - 1) + [last]
    loss = 3**0.5 * torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum() / len(parts)
    assert_matches_golden(loss, golden[f"{data}.{kind}.loss"])
    if data == "voc":
        gradients = torch.autograd.grad(loss, maps, allow_unused=True)
        for i, gradient in enumerate(gradients):
            expected = golden[f"voc.{kind}.grad.{i}"]
            assert_matches_golden(torch.zeros_like(expected) if gradient is None else gradient, expected)


def test_equal_maps_have_no_distance_and_a_gradient_of_zero() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    old = x.detach().clone().requires_grad_()
    spatial, channel, _ = pooled_cube(x, old)
    assert spatial.item() == channel.item() == 0
    gradient, none = torch.autograd.grad(spatial + channel, (x, old), allow_unused=True)
    assert none is None
    assert gradient.abs().sum() == 0


def test_half_precision_is_squared_in_float32() -> None:
    x = torch.full((1, 2, 2, 2), 300.0, dtype=torch.float16)
    spatial, channel, _ = pooled_cube(x, torch.zeros_like(x))
    assert spatial.dtype == channel.dtype == torch.float32
    assert spatial.isfinite()
    assert channel_distances(torch.full((1, 2, 2, 2), 9e4)).item() == pytest.approx(channel.item())
