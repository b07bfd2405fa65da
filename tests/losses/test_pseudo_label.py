"""Selective pseudo-labelling: confident old classes fill the background, unsure pixels are ignored."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.fused import select_pseudo_labels_in_pieces
from losses.pseudo_label import SelectivePseudoLabel, select_pseudo_labels
from tests.support.golden import each_golden_case, load_golden

# Each row is one pixel: label, the old model's (p_0, p_1, p_2), what is expected. K_old = 3, threshold 0.7.
WORKED_PIXELS = [
    (0, (0.10, 0.80, 0.10), 1),  # confident old class
    (0, (0.05, 0.05, 0.90), 2),  # another
    (0, (0.10, 0.50, 0.40), 255),  # old for sure (0.9), but which? 0.5 < 0.7
    (0, (0.45, 0.30, 0.25), 255),  # background is the argmax, yet 0.45 < 0.30 + 0.25
    (0, (0.60, 0.20, 0.20), 0),  # background outweighs the old classes: stays, confident or not
    (0, (0.90, 0.05, 0.05), 0),
    (3, (0.10, 0.80, 0.10), 3),  # a new class is never overruled,
    (3, (0.10, 0.50, 0.40), 3),  # nor ignored
    (255, (0.10, 0.80, 0.10), 255),  # what is ignored stays ignored
]


PLAIN: dict[tuple[int, tuple[float, ...]], int] = {(0, (0.10, 0.50, 0.40)): 0, (0, (0.45, 0.30, 0.25)): 0}
"""What plain pseudo-labelling makes of two of them."""


def random_batch(
    seed: int, num_old: int = 4, num_new: int = 2, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Return labels (2,12,10), half of them background, and float64 old logits (2,num_old,12,10)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_old, num_old + num_new + 1, (2, 12, 10), generator=generator)
    labels[labels == num_old + num_new] = ignore_index
    labels[torch.rand(labels.shape, generator=generator) < 0.5] = 0
    logits = 2 * torch.randn(2, num_old, 12, 10, generator=generator, dtype=torch.float64)
    return labels, logits


def slow_pseudo_labels(labels: Tensor, old_logits: Tensor, threshold: float, ignore_index: int) -> Tensor:
    """The three rules of the method, pixel by pixel."""
    result = labels.clone()
    for b, y, x in torch.ones_like(labels).nonzero().tolist():
        exponentials = [math.exp(value) for value in old_logits[b, :, y, x].tolist()]
        p = [value / sum(exponentials) for value in exponentials]
        best = p.index(max(p))
        if labels[b, y, x] != 0:
            continue
        if best != 0 and p[best] >= threshold:
            result[b, y, x] = best
        elif p[0] < sum(p[1:]):
            result[b, y, x] = ignore_index
    return result


@pytest.mark.parametrize(("label", "probabilities", "expected"), WORKED_PIXELS)
def test_worked_pixel(label: int, probabilities: tuple[float, ...], expected: int) -> None:
    logits = torch.tensor(probabilities).log().view(1, 3, 1, 1)
    result = SelectivePseudoLabel()(torch.tensor([[[label]]]), logits)
    assert result.tolist() == [[[expected]]]
    plain = SelectivePseudoLabel(ignore_unsure=False)(torch.tensor([[[label]]]), logits)
    assert plain.tolist() == [[[PLAIN.get((label, probabilities), expected)]]]


def test_confidence_equal_to_the_threshold_is_enough() -> None:
    certain = torch.tensor([-1000.0, 0.0, -1000.0]).view(1, 3, 1, 1)  # p = (0, 1, 0) exactly
    assert SelectivePseudoLabel(threshold=1.0)(torch.zeros(1, 1, 1, dtype=torch.long), certain).item() == 1


def test_background_as_likely_as_the_old_classes_together_stays() -> None:
    even = torch.zeros(1, 2, 1, 1)  # p = (0.5, 0.5) exactly, and 0.5 < 0.5 is false
    assert SelectivePseudoLabel()(torch.zeros(1, 1, 1, dtype=torch.long), even).item() == 0


def test_threshold_decides_between_old_class_and_ignore() -> None:
    logits = torch.tensor([0.2, 0.6, 0.2]).log().view(1, 3, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    assert SelectivePseudoLabel(threshold=0.55)(labels, logits).item() == 1
    assert SelectivePseudoLabel(threshold=0.65)(labels, logits).item() == 255


@each_golden_case
def test_equals_the_released_implementation(case: int) -> None:
    golden = load_golden(case)
    result = SelectivePseudoLabel(threshold=0.7)(golden["in_labels"], golden["in_prev"])
    assert torch.equal(result, golden["out_pseudo_labels"].long())


@each_golden_case
def test_cross_entropy_on_the_result_equals_the_released_implementation(case: int) -> None:
    golden = load_golden(case)
    pseudo_labels = SelectivePseudoLabel()(golden["in_labels"], golden["in_prev"])
    loss = torch.nn.functional.cross_entropy(golden["in_logits"], pseudo_labels, ignore_index=255)
    assert loss.item() == pytest.approx(golden["out_ce"].item(), rel=1e-5)


@pytest.mark.parametrize("ignore_index", [255, 200, -100])
@pytest.mark.parametrize("threshold", [0.4, 0.7, 0.95])
def test_equals_the_rules_applied_pixel_by_pixel(threshold: float, ignore_index: int) -> None:
    labels, logits = random_batch(seed=0, ignore_index=ignore_index)
    expected = slow_pseudo_labels(labels, logits, threshold, ignore_index)
    assert torch.equal(select_pseudo_labels(labels, logits, threshold, ignore_index), expected)
    # The batch exercises every rule: filled, newly ignored, kept as background.
    was_background = labels == 0
    assert {True, False} == set((expected[was_background] == 0).tolist())
    assert (expected[was_background] == ignore_index).any()
    assert ((expected[was_background] > 0) & (expected[was_background] < 4)).any()


def test_result_is_int64_without_gradient_and_the_inputs_stay_as_they_were() -> None:
    labels, logits = random_batch(seed=1)
    labels_before = labels.clone()
    logits.requires_grad_()
    result = SelectivePseudoLabel()(labels, logits)
    assert result.dtype == torch.int64
    assert not result.requires_grad
    assert torch.equal(labels, labels_before)
    assert logits.grad is None


def test_confident_background_everywhere_changes_nothing() -> None:
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 0] = 20
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    assert torch.equal(SelectivePseudoLabel()(labels, logits), labels)


def test_a_batch_of_ignored_pixels_stays_ignored() -> None:
    _, logits = random_batch(seed=2)
    labels = torch.full((2, 12, 10), 255)
    assert torch.equal(SelectivePseudoLabel()(labels, logits), labels)


def test_an_old_model_that_knows_only_background_changes_nothing() -> None:
    labels = torch.tensor([[[0, 1, 255]]])
    assert torch.equal(SelectivePseudoLabel()(labels, torch.randn(1, 1, 1, 3)), labels)


def test_a_batch_without_pixels_gives_none_back() -> None:
    result = SelectivePseudoLabel()(torch.zeros(0, 2, 2, dtype=torch.long), torch.zeros(0, 3, 2, 2))
    assert result.shape == (0, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_judged_in_float32(dtype: torch.dtype) -> None:
    # Logits (0, x) with x around ln(0.7 / 0.3) = 0.8473: p_1 rounded to half precision would cross the threshold.
    x = torch.linspace(0.83, 0.86, 61).to(dtype)
    logits = torch.stack([torch.zeros_like(x), x]).view(1, 2, 1, 61)
    labels = torch.zeros(1, 1, 61, dtype=torch.long)
    expected = slow_pseudo_labels(labels, logits.double(), 0.7, 255)
    assert set(expected.flatten().tolist()) == {1, 255}
    assert torch.equal(SelectivePseudoLabel()(labels, logits), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_logits_are_sure(dtype: torch.dtype) -> None:
    logits = torch.tensor([-6e4, 6e4, 0.0], dtype=dtype).view(1, 3, 1, 1)
    assert SelectivePseudoLabel()(torch.zeros(1, 1, 1, dtype=torch.long), logits).item() == 1


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    num_old=st.integers(1, 6),
    num_new=st.integers(0, 3),
    threshold=st.floats(0, 1),
)
def test_only_background_changes_and_only_to_what_the_old_model_may_teach(
    seed: int, num_old: int, num_new: int, threshold: float
) -> None:
    labels, logits = random_batch(seed, num_old, num_new)
    result = select_pseudo_labels(labels, logits, threshold, 255)
    for ignore_unsure in (True, False):
        arguments = labels, logits, threshold, 255, ignore_unsure
        assert torch.equal(select_pseudo_labels_in_pieces(*arguments), select_pseudo_labels(*arguments))
    assert torch.equal(result[labels != 0], labels[labels != 0])
    taught = set(range(1, num_old)) | {0, 255}
    assert set(result[labels == 0].tolist()) <= taught
    assert set(result.flatten().tolist()) <= set(labels.flatten().tolist()) | taught
