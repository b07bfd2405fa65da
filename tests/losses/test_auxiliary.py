"""losses/auxiliary.py: every cell is a negative, by hand."""

import math

import pytest
import torch

from losses.auxiliary import auxiliary_loss


def test_a_score_costs_what_it_would_at_a_negative() -> None:
    logits = torch.tensor([[0.25, 0.5], [0.9, 0.2]]).logit().view(2, 1, 1, 2).requires_grad_()
    total, count = auxiliary_loss(logits)
    expected = -math.log(0.75) - math.log(0.5) - math.log(0.1) - math.log(0.8)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert count == 4
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.flatten().tolist() == pytest.approx([0.25, 0.5, 0.9, 0.2])


def test_large_scores_of_half_precision_stay_finite() -> None:
    total, _ = auxiliary_loss(torch.full((1, 1, 2, 2), 6e4, dtype=torch.float16))
    assert float(total) == pytest.approx(4 * 6e4, rel=1e-3)
