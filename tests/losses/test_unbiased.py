"""losses/unbiased.py and losses/logit_distillation.py: by hand and against a slow float64 form."""

import math

import pytest
import torch
from torch import Tensor

from losses.logit_distillation import logit_distillation
from losses.unbiased import unbiased_cross_entropy, unbiased_distillation

NUM_OLD = 3
LOG2 = math.log(2)


def random_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 logits (2,5,3,4), old logits (2,3,3,4) and labels (2,3,4): background, an old and the new ones, 255."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    old_logits = 2 * torch.randn(2, NUM_OLD, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 3, 4, 255])[torch.randint(0, 5, (2, 3, 4), generator=generator)]
    return logits, old_logits, labels


def pixels(x: Tensor) -> list[list[float]]:
    """The channels of every pixel."""
    rows: list[list[float]] = x.flatten(2).transpose(1, 2).flatten(0, 1).tolist()
    return rows


def softmax(z: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in z)
    return [math.exp(x) / total for x in z]


def one_pixel(*logits: float) -> Tensor:
    return torch.tensor(logits).view(1, -1, 1, 1)


def test_background_and_old_labels_may_be_any_old_class_and_a_new_class_only_itself() -> None:
    # Probabilities 1/12, 1/12, 1/6, 2/3 of background, two old classes and a new one.
    logits = one_pixel(0, 0, LOG2, 2 * LOG2 + math.log(2))
    for label, probability in ((0, 1 / 3), (1, 1 / 3), (3, 2 / 3)):
        total, count = unbiased_cross_entropy(logits, torch.tensor([[[label]]]), NUM_OLD, 255)
        assert float(total) == pytest.approx(-math.log(probability))
        assert int(count) == 1


def test_new_classes_join_the_background_that_the_old_model_saw() -> None:
    # Old: 1/2, 1/4, 1/4. New: 1/8 + 1/2 of background and new class, 1/8, 1/4.
    total, count = unbiased_distillation(one_pixel(0, 0, LOG2, 2 * LOG2), one_pixel(LOG2, 0, 0))
    expected = -(0.5 * math.log(5 / 8) + 0.25 * math.log(1 / 8) + 0.25 * math.log(1 / 4))
    assert float(total) == pytest.approx(expected)
    assert count == 3


def test_plain_distillation_looks_at_old_classes_alone() -> None:
    # Old: 1/2, 1/4, 1/4. New, without the new class: 1/4, 1/4, 1/2.
    for new in (-7.0, 0.0, 9.0):
        total, count = logit_distillation(one_pixel(0, 0, LOG2, new), one_pixel(LOG2, 0, 0))
        expected = -(0.5 * math.log(1 / 4) + 0.25 * math.log(1 / 4) + 0.25 * math.log(1 / 2))
        assert float(total) == pytest.approx(expected)
        assert count == 3


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_the_slow_form_pixel_by_pixel(seed: int) -> None:
    logits, _, labels = random_batch(seed)
    expected, num_labelled = 0.0, 0
    for z, label in zip(pixels(logits), labels.flatten().tolist(), strict=True):
        if label != 255:
            p = softmax(z)
            expected -= math.log(sum(p[:NUM_OLD]) if label < NUM_OLD else p[label])
            num_labelled += 1
    total, count = unbiased_cross_entropy(logits, labels, NUM_OLD, 255)
    assert float(total) == pytest.approx(expected, rel=1e-12)
    assert int(count) == num_labelled


@pytest.mark.parametrize("seed", range(3))
def test_distillations_are_their_slow_forms_pixel_by_pixel(seed: int) -> None:
    logits, old_logits, _ = random_batch(seed)
    plain = unbiased = 0.0
    for z, z_old in zip(pixels(logits), pixels(old_logits), strict=True):
        p_old, p, p_alone = softmax(z_old), softmax(z), softmax(z[:NUM_OLD])
        merged = [p[0] + sum(p[NUM_OLD:]), *p[1:NUM_OLD]]
        unbiased -= sum(q * math.log(m) for q, m in zip(p_old, merged, strict=True))
        plain -= sum(q * math.log(m) for q, m in zip(p_old, p_alone, strict=True))
    for distil, expected in ((logit_distillation, plain), (unbiased_distillation, unbiased)):
        total, count = distil(logits, old_logits)
        assert float(total) == pytest.approx(expected, rel=1e-12)
        assert count == old_logits.numel()


def test_ignored_pixels_and_the_old_model_get_no_gradient_and_all_ignored_is_a_connected_zero() -> None:
    logits, old_logits, labels = (x for x in random_batch(0))
    logits.requires_grad_()
    old_logits.requires_grad_()
    total, _ = unbiased_cross_entropy(logits, labels, NUM_OLD, 255)
    (gradient,) = torch.autograd.grad(total, logits)
    is_ignored = (labels == 255)[:, None].expand_as(gradient)
    assert not gradient[is_ignored].any()
    assert gradient[~is_ignored].ne(0).all()
    total, count = unbiased_cross_entropy(logits, torch.full_like(labels, 255), NUM_OLD, 255)
    assert float(total) == 0
    assert int(count) == 0
    assert not torch.autograd.grad(total, logits)[0].any()
    for distil in (logit_distillation, unbiased_distillation):
        total, _ = distil(logits, old_logits)
        assert torch.autograd.grad(total, old_logits, allow_unused=True) == (None,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    logits, old_logits, labels = random_batch(1)
    logits, old_logits = (30 * logits).to(dtype), (30 * old_logits).to(dtype)
    for total in (
        unbiased_cross_entropy(logits, labels, NUM_OLD, 255)[0],
        unbiased_distillation(logits, old_logits)[0],
        logit_distillation(logits, old_logits)[0],
    ):
        assert total.dtype == torch.float32
        assert total.isfinite()
    expected = unbiased_distillation(logits.double(), old_logits.double())[0]
    assert float(unbiased_distillation(logits, old_logits)[0]) == pytest.approx(float(expected), rel=1e-5)
