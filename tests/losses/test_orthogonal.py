"""Orthogonal loss: only the new classes' tokens move, away from every other token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.orthogonal import OrthogonalLoss, orthogonality
from tests.support.golden import assert_matches_golden, each_golden_case, load_golden


def random_tokens(seed: int, num_classes: int = 6, width: int = 4) -> Tensor:
    """Return float64 tokens (num_classes, width) of differing lengths."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num_classes, width, generator=generator, dtype=torch.float64)


def slow_orthogonality(tokens: Tensor, num_new: int) -> float:
    """Mean of |cos(e_i, e_j)| over new i and any j ≠ i, pair by pair."""
    rows: list[list[float]] = tokens.tolist()
    terms = []
    for i in range(len(rows) - num_new, len(rows)):
        for j in range(len(rows)):
            if i != j:
                dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
                terms.append(abs(dot) / (math.hypot(*rows[i]) * math.hypot(*rows[j])))
    return sum(terms) / len(terms) if terms else 0.0


def slow_gradient(tokens: Tensor, num_new: int) -> Tensor:
    """Gradient by the definition: ê_j is a constant, so pair (i, j) moves row i alone.

    d|ê_i·ê_j| / d e_i = sign(ê_i·ê_j) · (ê_j − (ê_i·ê_j) ê_i) / ‖e_i‖
    """
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    gradient = torch.zeros_like(tokens)
    num_classes = len(tokens)
    for i in range(num_classes - num_new, num_classes):
        for j in range(num_classes):
            if i != j:
                cosine = unit[i] @ unit[j]
                gradient[i] += cosine.sign() * (unit[j] - cosine * unit[i]) / tokens[i].norm()
    return gradient / (num_new * (num_classes - 1))


def test_worked_value_of_one_new_class() -> None:
    # ê = (−1,0), (0,1), (0.6,0.8); the last is new: |−0.6| and |0.8|, mean 0.7; × K_new / K = 1/3.
    tokens = torch.tensor([[-2.0, 0.0], [0.0, 3.0], [3.0, 4.0]])
    assert orthogonality(tokens, 1).item() == pytest.approx(0.7)
    assert OrthogonalLoss()(tokens, 1).item() == pytest.approx(0.7 / 3)


def test_worked_value_of_two_new_classes() -> None:
    # New: (0,1) with the others 0 and 0.8; (0.6,0.8) with the others 0.6 and 0.8. Mean of four: 0.55; × 2/3.
    tokens = torch.tensor([[-2.0, 0.0], [0.0, 3.0], [3.0, 4.0]])
    assert orthogonality(tokens, 2).item() == pytest.approx(0.55)
    assert OrthogonalLoss()(tokens, 2).item() == pytest.approx(0.55 * 2 / 3)


@each_golden_case
def test_value_and_gradient_equal_the_released_implementation(case: int) -> None:
    golden = load_golden(case)
    tokens = golden["in_tokens"].requires_grad_()
    value = orthogonality(tokens, int(golden["num_new"]))
    value.backward()
    assert_matches_golden(value, golden["out_ortho"])
    assert tokens.grad is not None
    assert_matches_golden(tokens.grad, golden["out_grad_ortho"])


@each_golden_case
def test_loss_weighs_the_value_by_the_share_of_new_classes(case: int) -> None:
    golden = load_golden(case)
    num_old, num_new = int(golden["num_old"]), int(golden["num_new"])
    loss = OrthogonalLoss()(golden["in_tokens"], num_new)
    assert_matches_golden(loss, golden["out_ortho"] * num_new / (num_old + num_new))


@pytest.mark.parametrize("num_new", [1, 2, 5, 6])
def test_value_equals_the_slow_form(num_new: int) -> None:
    tokens = random_tokens(seed=0)
    value = orthogonality(tokens, num_new)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(slow_orthogonality(tokens, num_new), rel=1e-10)
    expected = slow_orthogonality(tokens, num_new) * num_new / 6
    assert OrthogonalLoss()(tokens, num_new).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("num_new", [1, 3, 6])
def test_gradient_takes_the_other_token_as_a_constant(num_new: int) -> None:
    tokens = random_tokens(seed=1).requires_grad_()
    orthogonality(tokens, num_new).backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad, slow_gradient(tokens.detach(), num_new), rtol=1e-10, atol=1e-15)


def test_background_and_old_tokens_get_no_gradient() -> None:
    tokens = random_tokens(seed=2).requires_grad_()
    OrthogonalLoss()(tokens, 2).backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad[:4], torch.zeros(4, 4, dtype=torch.float64))
    assert (tokens.grad[4:] != 0).any(dim=1).all()


def test_no_new_class_gives_a_connected_zero() -> None:
    tokens = random_tokens(seed=3).requires_grad_()
    assert orthogonality(tokens, 0).item() == 0
    loss = OrthogonalLoss()(tokens, 0)
    assert loss.item() == 0
    loss.backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.zeros_like(tokens))


def test_a_class_without_another_gives_a_connected_zero() -> None:
    tokens = random_tokens(seed=4, num_classes=1).requires_grad_()
    loss = OrthogonalLoss()(tokens, 1)
    assert loss.item() == 0
    loss.backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.zeros_like(tokens))


def test_orthogonal_tokens_cost_0_and_parallel_or_opposite_ones_1() -> None:
    assert orthogonality(torch.diag(torch.tensor([1.0, 2.0, 3.0])), 2).item() == 0
    assert orthogonality(torch.tensor([[1.0, 1.0], [-2.0, -2.0], [3.0, 3.0]]), 1).item() == pytest.approx(1)


def test_a_new_token_that_is_a_copy_of_the_background_starts_with_a_finite_gradient() -> None:
    # Background weight transfer starts every incremental step here.
    tokens = random_tokens(seed=5)
    tokens[5] = tokens[0]
    tokens.requires_grad_()
    OrthogonalLoss()(tokens, 1).backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_tokens_are_compared_in_float32(dtype: torch.dtype) -> None:
    # ‖e‖² is about 768 · 3e4², far beyond float16.
    generator = torch.Generator().manual_seed(6)
    tokens = (3e4 * (2 * torch.rand(5, 768, generator=generator) - 1)).to(dtype).requires_grad_()
    loss = OrthogonalLoss()(tokens, 2)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_orthogonality(tokens.detach().double(), 2) * 2 / 5, rel=1e-5)
    assert tokens.grad is not None
    assert tokens.grad.dtype == dtype
    assert tokens.grad.isfinite().all()


def test_mixed_precision_keeps_the_cosines_in_float32() -> None:
    tokens = random_tokens(seed=7).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = orthogonality(tokens, 2)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(slow_orthogonality(tokens.double(), 2), rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), num_classes=st.integers(2, 7), data=st.data())
def test_value_lies_between_0_and_1_and_ignores_lengths_and_signs(
    seed: int, num_classes: int, data: st.DataObject
) -> None:
    num_new = data.draw(st.integers(1, num_classes))
    tokens = random_tokens(seed, num_classes)
    value = orthogonality(tokens, num_new).item()
    assert 0 <= value <= 1 + 1e-12
    assert value == pytest.approx(slow_orthogonality(tokens, num_new), rel=1e-10)
    factors = torch.linspace(-5, 7, num_classes, dtype=torch.float64)[:, None] + 0.01
    assert orthogonality(factors * tokens, num_new).item() == pytest.approx(value, rel=1e-9)
