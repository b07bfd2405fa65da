"""losses/focal.py: with γ 0 it is the cross-entropy, else that with a factor a pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses.binary_cross_entropy import binary_cross_entropy
from losses.focal import binary_focal, focal_cross_entropy


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 5, 3), generator=generator)
    labels[0, :2] = 255
    return logits, labels


def test_without_gamma_it_is_the_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    expected = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    torch.testing.assert_close(focal_cross_entropy(logits, labels, 0.0, 0, 255), expected)
    new_only = F.cross_entropy(logits, labels.masked_fill(labels < 2, 255), ignore_index=255, reduction="sum")
    torch.testing.assert_close(focal_cross_entropy(logits, labels, 0.0, 2, 255), new_only)
    for first in (0, 2):
        expected, _ = binary_cross_entropy(logits, labels, 255, first_class=first)
        torch.testing.assert_close(binary_focal(logits, labels, 0.0, first, 255), expected)


def test_a_pixel_weighs_what_its_label_lacks_to_the_power_of_gamma() -> None:
    logits = torch.tensor([[[[0.0]], [[0.0]]]])
    labels = torch.tensor([[[1]]])
    half = torch.tensor(0.5)
    torch.testing.assert_close(focal_cross_entropy(logits, labels, 2.0, 0, 255), -(0.25) * half.log())
    torch.testing.assert_close(binary_focal(logits, labels, 2.0, 1, 255), -(0.25) * half.log())
    torch.testing.assert_close(binary_focal(logits, labels, 2.0, 0, 255), -2 * (0.25) * half.log())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_sure_pixels_have_finite_gradients_in_half_precision(gamma: float) -> None:
    logits = torch.tensor([60.0, -60.0]).view(1, 2, 1, 1).to(torch.float16).requires_grad_()
    for loss in (focal_cross_entropy, binary_focal):
        for label in (0, 1, 255):
            total = loss(logits, torch.tensor([[[label]]]), gamma, 0, 255)
            assert total.isfinite()
            (gradient,) = torch.autograd.grad(total, logits)
            assert gradient.isfinite().all()
    assert focal_cross_entropy(logits, torch.tensor([[[255]]]), gamma, 0, 255).item() == 0
