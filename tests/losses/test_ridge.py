"""losses/ridge.py: sums by hand, the solution against a slow form, and that steps add up to all at once."""

import pytest
import torch
from torch import Tensor

from losses.ridge import (
    balanced_sums,
    class_grams,
    fit_sharpness,
    likelihood_slope,
    solve_ridge,
    standardisation,
)

F, K = 5, 3


def random_cells(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (N,F), of unlike means and scales, and labels (N,) of K classes and 255."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.01, 1.0, 3.0, 50.0, 0.5], dtype=torch.float64)
    x = (torch.randn(count, F, generator=generator, dtype=torch.float64) + 2) * scales
    labels = torch.tensor([0, 0, 0, 1, 2, 255])[torch.randint(0, 6, (count,), generator=generator)]
    x[:, 1] += labels.clamp(max=3)
    return x, labels


def slow_solution(x: Tensor, y: Tensor, w: Tensor, mean: Tensor, deviation: Tensor, ridge: float) -> Tensor:
    """Scores of x itself by least squares over rows of the cells and of the penalty."""
    standard = torch.cat([(x - mean) / deviation, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    rows = w.sqrt()[:, None] * standard
    penalty = (ridge * rows.square().sum() / standard.shape[1]).sqrt() * torch.eye(standard.shape[1]).double()
    targets = torch.cat([w.sqrt()[:, None] * y, torch.zeros(standard.shape[1], y.shape[1]).double()])
    return standard @ torch.linalg.lstsq(torch.cat([rows, penalty]), targets).solution


def test_grams_of_classes_by_hand() -> None:
    grams = class_grams(torch.tensor([[2.0], [3.0], [5.0], [7.0]]), torch.tensor([0, 1, 0, 255]), 3)
    assert grams.dtype == torch.float64
    assert grams.tolist() == [[[29, 7], [7, 2]], [[9, 3], [3, 1]], [[0, 0], [0, 0]]]


def test_weights_of_classes_by_hand() -> None:
    grams = class_grams(torch.tensor([[2.0], [3.0], [5.0], [1.0], [1.0]]), torch.tensor([0, 1, 0, 0, 0]), 2)
    # Counts 4 and 1, their mean 2.5.
    for balance, weights in ((0.0, (1, 1)), (1.0, (0.625, 2.5)), (0.5, (0.625**0.5, 2.5**0.5))):
        gram, targets = balanced_sums(grams, balance)
        torch.testing.assert_close(gram, weights[0] * grams[0] + weights[1] * grams[1])
        expected = torch.tensor([[9.0 * weights[0], 3 * weights[1]], [4 * weights[0], weights[1]]]).double()
        torch.testing.assert_close(targets, expected)


def test_a_class_without_cells_weighs_nothing_and_has_no_score() -> None:
    x, labels = random_cells(50, 0)
    labels[labels == 2] = 1
    gram, targets = balanced_sums(class_grams(x, labels, K), 0.5)
    assert targets[:, 2].abs().sum() == 0
    weight, bias = solve_ridge(gram, targets, *standardisation(gram), 1e-3)
    assert weight[2].abs().sum() == bias[2] == 0


def test_features_are_standardised_by_their_mean_and_deviation() -> None:
    x, labels = random_cells(60, 1)
    known = labels != 255
    mean, deviation = standardisation(class_grams(x, labels, K).sum(dim=0))
    torch.testing.assert_close(mean, x[known].mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(deviation, x[known].std(dim=0, correction=0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_solution_is_that_of_least_squares_over_standardised_cells(balance: float) -> None:
    x, labels = random_cells(80, 2)
    grams = class_grams(x, labels, K)
    mean, deviation = standardisation(grams.sum(dim=0))
    weight, bias = solve_ridge(*balanced_sums(grams, balance), mean, deviation, 1e-3)
    known = labels != 255
    counts = labels[known].bincount(minlength=K).double()
    w = (counts.mean() / counts)[labels[known]] ** balance
    y = torch.nn.functional.one_hot(labels[known], K).double()
    expected = slow_solution(x[known], y, w, mean, deviation, 1e-3)
    torch.testing.assert_close(x[known] @ weight.T + bias, expected, rtol=1e-10, atol=1e-10)


def test_steps_in_any_parts_and_order_add_up_to_all_at_once() -> None:
    x, labels = random_cells(90, 3)
    mean, deviation = standardisation(class_grams(x, labels, K).sum(dim=0))
    gram, targets = balanced_sums(class_grams(x, labels, K), 0.0)
    whole = solve_ridge(gram, targets, mean, deviation, 1e-3)
    gram, targets = torch.zeros_like(gram), torch.zeros_like(targets)
    for part in torch.randperm(90, generator=torch.Generator().manual_seed(4)).split([50, 10, 30]):
        own_gram, own_targets = balanced_sums(class_grams(x[part], labels[part], K), 0.0)
        gram, targets = gram + own_gram, targets + own_targets
    for ours, expected in zip(solve_ridge(gram, targets, mean, deviation, 1e-3), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_feature_that_never_moves_does_no_harm() -> None:
    x, labels = random_cells(40, 5)
    x[:, 0] = 7
    gram, targets = balanced_sums(class_grams(x, labels, K), 0.5)
    weight, bias = solve_ridge(gram, targets, *standardisation(gram), 1e-3)
    assert weight.isfinite().all()
    assert bias.isfinite().all()


def test_the_slope_of_the_likelihood_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(6)
    scores, labels = torch.randn(20, 4, generator=generator), torch.randint(0, 4, (20,), generator=generator)
    sharpness = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(sharpness * scores.double(), labels, reduction="sum")
    (first,) = torch.autograd.grad(loss, sharpness, create_graph=True)
    (second,) = torch.autograd.grad(first, sharpness)
    ours = likelihood_slope(scores, labels, 1.7)
    torch.testing.assert_close(ours, torch.stack([first, second]).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sharpness", [0.05, 1.0, 30.0])
def test_the_sharpness_by_which_labels_were_drawn_is_found(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn(40_000, 3, generator=generator) / sharpness
    labels = torch.multinomial((sharpness * scores).softmax(dim=1), 1, generator=generator)[:, 0]
    found = fit_sharpness(lambda beta: likelihood_slope(scores, labels, beta))
    assert found == pytest.approx(sharpness, rel=0.05)


def test_scores_that_are_always_right_end_in_a_finite_sharpness() -> None:
    scores, labels = torch.eye(3), torch.arange(3)
    found = fit_sharpness(lambda beta: likelihood_slope(scores, labels, beta))
    assert 10 < found < float("inf")
