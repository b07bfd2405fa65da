"""losses/binary_distillation.py: values by hand; where background is expected no longer; no gradient to what is old."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses.binary_distillation import binary_distillation


def entropy(q: float, p: float) -> float:
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


def test_old_classes_are_held_and_background_is_0_where_a_new_class_is() -> None:
    # Background and one old class, which scored 0.9 and 0.2; now 0.6 and 0.3, and a new class, which is free.
    old_logits = torch.tensor([0.9, 0.2]).logit().view(1, 2, 1, 1).expand(1, 2, 1, 3)
    logits = torch.tensor([0.6, 0.3, 0.5]).logit().view(1, 3, 1, 1).expand(1, 3, 1, 3)
    total, count = binary_distillation(logits, old_logits, torch.tensor([[[0, 2, 255]]]), 255)
    of_old_class, of_background = entropy(0.2, 0.3), entropy(0.9, 0.6)
    assert float(total) == pytest.approx(3 * of_old_class + 2 * of_background - math.log(1 - 0.6), rel=1e-5)
    assert count == 3


def test_it_is_torchs_with_no_gradient_to_old_and_new() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 5, 3, 4, generator=generator)).double().requires_grad_()
    old_logits = (3 * torch.randn(2, 3, 3, 4, generator=generator)).double().requires_grad_()
    labels = torch.tensor([0, 3, 4, 255])[torch.randint(0, 4, (2, 3, 4), generator=generator)]
    targets = old_logits.detach().sigmoid()
    targets[:, 0] = torch.where((labels == 3) | (labels == 4), 0, targets[:, 0])
    expected = F.binary_cross_entropy_with_logits(logits[:, :3], targets, reduction="sum")
    total, _ = binary_distillation(logits, old_logits, labels, 255)
    torch.testing.assert_close(total, expected)
    gradient, to_old = torch.autograd.grad(total, [logits, old_logits], allow_unused=True)
    assert to_old is None
    assert not gradient[:, 3:].any()
    torch.testing.assert_close(gradient[:, :3], logits[:, :3].sigmoid() - targets)


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.full((1, 2, 64, 64), 100.0, dtype=torch.float16)
    total, _ = binary_distillation(logits, -logits, torch.zeros(1, 64, 64, dtype=torch.int64), 255)
    assert total.dtype == torch.float32
    assert float(total) == 2 * 64 * 64 * 100
