"""losses/dice.py: values worked by hand, what counts, and that gradients point the right way."""

import pytest
import torch

from losses.dice import count_shown, soft_dice


def test_a_value_worked_by_hand() -> None:
    labels = torch.tensor([[[1, 1, 0, 255]]])
    probabilities = torch.tensor([[0.5, 0.4], [0.25, 0.5], [0.75, 0.5], [0.0, 1.0]]).T[None, :, None]
    # Class 1: overlap 0.4 + 0.5, of labelled pixels 0.4 + 0.5 + 0.5 expected and 2 labelled.
    total, count = soft_dice(probabilities, labels, 1, 255)
    assert total.item() == pytest.approx(1 - (2 * 0.9 + 1) / (1.4 + 2 + 1))
    assert count.item() == count_shown(labels, 1, 2).item() == 1


def test_only_classes_that_an_image_shows_count_from_the_first_on() -> None:
    labels = torch.tensor([[[1, 2]], [[2, 2]], [[0, 255]]])
    probabilities = torch.rand(3, 4, 1, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total, count = soft_dice(probabilities, labels, 2, 255)
    alone = [soft_dice(probabilities[i : i + 1], labels[i : i + 1], 2, 255)[0] for i in range(3)]
    torch.testing.assert_close(total, sum(alone))
    assert alone[2].item() == 0
    assert count.item() == count_shown(labels, 2, 4).item() == 2
    total.backward()
    assert probabilities.grad is not None
    assert probabilities.grad[:, :2].abs().sum() == probabilities.grad[:, 3].abs().sum() == 0
    assert (probabilities.grad[1, 2] < 0).all()  # more of the class is right
    assert probabilities.grad[2].abs().sum() == 0


def test_a_perfect_answer_costs_nothing_and_the_size_does_not_matter() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, 2:4, 2:4] = 1
    perfect = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    assert soft_dice(perfect, labels, 1, 255)[0].item() == 0
    assert soft_dice(1 - perfect, labels, 1, 255)[0].item() == pytest.approx(1 - 1 / (60 + 4 + 1))
