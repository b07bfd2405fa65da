"""losses/binary_cross_entropy.py: values by hand and against torch; SSUL's pseudo-labels."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses.binary_cross_entropy import (
    binary_cross_entropy,
    sigmoid_pseudo_labels,
    soft_binary_cross_entropy,
)


def test_every_class_is_asked_whether_the_pixel_shows_it() -> None:
    # Scores 1/2, 3/4, 1/5; the pixel shows the second.
    logits = torch.tensor([0, math.log(3), -math.log(4)]).view(1, 3, 1, 1)
    total, count = binary_cross_entropy(logits, torch.tensor([[[1]]]), 255)
    assert float(total) == pytest.approx(-math.log(1 / 2) - math.log(3 / 4) - math.log(4 / 5))
    assert int(count) == 1


def test_it_is_torchs_over_labelled_pixels_with_their_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 4, 3, 5, generator=generator)).double().requires_grad_()
    labels = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (2, 3, 5), generator=generator)]
    weights = torch.rand(2, 3, 5, generator=generator).double()
    is_labelled = labels != 255
    targets = F.one_hot(labels.where(is_labelled, 0), 4).movedim(3, 1).double()
    factors = (weights * is_labelled)[:, None].expand_as(logits)
    expected = F.binary_cross_entropy_with_logits(logits, targets, factors, reduction="sum")
    total, count = binary_cross_entropy(logits, labels, 255, weights)
    torch.testing.assert_close(total, expected)
    assert int(count) == int(is_labelled.sum())
    torch.testing.assert_close(
        torch.autograd.grad(total, logits)[0], torch.autograd.grad(expected, logits)[0]
    )


def test_of_the_new_classes_alone_old_ones_and_background_are_not_asked() -> None:
    # Two old classes score what they like; the new ones 3/4 and 1/5 at pixels of background, 2 and 255.
    scores = torch.tensor([0.9, 0.4, 0.75, 0.2]).double().logit()
    logits = scores.view(1, 4, 1, 1).expand(1, 4, 1, 3).clone().requires_grad_()
    total, count = binary_cross_entropy(logits, torch.tensor([[[0, 2, 255]]]), 255, first_class=2)
    of_background = -math.log(1 / 4) - math.log(4 / 5)
    assert float(total.detach()) == pytest.approx(of_background - math.log(3 / 4) - math.log(4 / 5))
    assert int(count) == 2
    (gradient,) = torch.autograd.grad(total, logits)
    assert not gradient[:, :2].any()
    assert gradient[0, 2:, 0].tolist() == [
        pytest.approx([0.75, -0.25, 0]),
        pytest.approx([0.2, 0.2, 0]),
    ]


def test_soft_targets_have_torchs_value_and_large_scores_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(4, 5, generator=generator)).double()
    probabilities = torch.rand(4, 5, generator=generator).double()
    expected = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")
    torch.testing.assert_close(soft_binary_cross_entropy(logits, probabilities), expected)
    large = soft_binary_cross_entropy(torch.tensor([6e4, -6e4]).half(), torch.tensor([0.5, 0.5]))
    assert large.tolist() == pytest.approx([3e4, 3e4], rel=1e-3)
    assert large.dtype == torch.float32


def test_large_scores_and_no_labelled_pixel_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]]).view(1, 2, 1, 1).half().requires_grad_()
    total, _ = binary_cross_entropy(logits, torch.tensor([[[1]]]), 255)
    assert float(total) == 2e4
    total, count = binary_cross_entropy(logits, torch.tensor([[[255]]]), 255)
    assert float(total) == int(count) == 0
    assert not torch.autograd.grad(total, logits)[0].any()


def test_background_becomes_the_old_class_whose_score_suffices() -> None:
    # Columns: sure of 2; its score is too low; background scores more; a new class; ignored.
    scores = torch.tensor([[0.1, 0.1, 0.9, 0.1, 0.1], [0.2, 0.3, 0.8, 0.2, 0.2], [0.7, 0.6, 0.8, 0.9, 0.9]])
    labels = torch.tensor([[[0, 0, 0, 3, 255]]])
    old_logits = scores.double().logit().view(1, 3, 1, 5)
    pseudo_labels = sigmoid_pseudo_labels(labels, old_logits, threshold=0.7 - 1e-6)
    assert pseudo_labels.tolist() == [[[2, 0, 0, 3, 255]]]


def test_pixels_that_show_a_class_weigh_more_as_torchs_do() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (3 * torch.randn(2, 5, 3, 7, generator=generator)).double().requires_grad_()
    labels = torch.tensor([0, 2, 3, 4, 255])[torch.randint(0, 5, (2, 3, 7), generator=generator)]
    shown = torch.stack([labels == c for c in range(3, 5)], dim=1).double()
    weight = torch.full((2, 3, 7), 35.0, dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(logits[:, 3:], shown, pos_weight=weight, reduction="none")
    expected = loss[(labels != 255)[:, None].expand_as(loss)].sum()
    total, _ = binary_cross_entropy(logits, labels, 255, first_class=3, positive_weight=35.0)
    torch.testing.assert_close(total, expected)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (total, expected))
    torch.testing.assert_close(ours, theirs)
