"""losses/binary_distillation.py: values by hand; background takes no part; no gradient to what is old."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses.binary_distillation import binary_distillation


def entropy(q: float, p: float) -> float:
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


def test_old_classes_are_held_background_and_new_ones_are_free() -> None:
    # Background and one old class, which scored 0.9 and 0.2; now 0.6 and 0.3, and a new class.
    old_logits = torch.tensor([0.9, 0.2]).logit().view(1, 2, 1, 1).expand(1, 2, 1, 3)
    logits = torch.tensor([0.6, 0.3, 0.5]).logit().view(1, 3, 1, 1).expand(1, 3, 1, 3)
    total, count = binary_distillation(logits, old_logits)
    assert float(total) == pytest.approx(3 * entropy(0.2, 0.3), rel=1e-5)
    assert count == 3


def test_it_is_torchs_with_no_gradient_to_background_old_and_new() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 5, 3, 4, generator=generator)).double().requires_grad_()
    old_logits = (3 * torch.randn(2, 3, 3, 4, generator=generator)).double().requires_grad_()
    targets = old_logits.detach()[:, 1:].sigmoid()
    expected = F.binary_cross_entropy_with_logits(logits[:, 1:3], targets, reduction="sum")
    total, _ = binary_distillation(logits, old_logits)
    torch.testing.assert_close(total, expected)
    gradient, to_old = torch.autograd.grad(total, [logits, old_logits], allow_unused=True)
    assert to_old is None
    assert not gradient[:, [0, 3, 4]].any()
    torch.testing.assert_close(gradient[:, 1:3], logits[:, 1:3].sigmoid() - targets)


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.full((1, 2, 64, 64), 100.0, dtype=torch.float16)
    total, _ = binary_distillation(logits, -logits)
    assert total.dtype == torch.float32
    assert float(total) == 64 * 64 * 100
