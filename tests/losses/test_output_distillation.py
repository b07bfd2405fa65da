"""Label-guided output distillation: the old background's mass goes to the labelled new class."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.output_distillation import LabelGuidedOutputDistillation, output_distillation
from tests.support.golden import assert_matches_golden, each_golden_case, load_golden


def random_batch(
    seed: int, num_old: int = 3, num_new: int = 2, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 logits (2,K,4,5) and old logits (2,K_old,4,5), and labels (2,4,5) of every allowed kind."""
    generator = torch.Generator().manual_seed(seed)
    num_classes = num_old + num_new
    logits = 2 * torch.randn(2, num_classes, 4, 5, generator=generator, dtype=torch.float64)
    old_logits = 2 * torch.randn(2, num_old, 4, 5, generator=generator, dtype=torch.float64)
    ids = torch.tensor([0, *range(num_old, num_classes), ignore_index])
    labels = ids[torch.randint(len(ids), (2, 4, 5), generator=generator)]
    return logits, old_logits, labels


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def slow_target(old_logits: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """q (B,K,H,W): the padded old probabilities, pixel by pixel with the background's mass moved."""
    batch, num_old, height, width = old_logits.shape
    target = torch.zeros(batch, num_classes, height, width, dtype=torch.float64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                q = softmax(old_logits[b, :, y, x].tolist()) + [0.0] * (num_classes - num_old)
                label = int(labels[b, y, x])
                if label >= num_old and label != ignore_index:
                    q[label], q[0] = q[0], 0.0
                target[b, :, y, x] = torch.tensor(q, dtype=torch.float64)
    return target


def slow_distillation(logits: Tensor, target: Tensor) -> float:
    """− mean over pixels of the mean over channels of q · log softmax(z)."""
    batch, num_classes, height, width = logits.shape
    pixel_losses = []
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                p = softmax(logits[b, :, y, x].tolist())
                terms = [float(target[b, k, y, x]) * math.log(p[k]) for k in range(num_classes)]
                pixel_losses.append(-sum(terms) / num_classes)
    return sum(pixel_losses) / len(pixel_losses)


def plain_distillation(logits: Tensor, old_logits: Tensor) -> float:
    """Output distillation without labels: the padded old probabilities are the target everywhere."""
    no_label = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long)
    return slow_distillation(logits, slow_target(old_logits, no_label, logits.shape[1], 255))


def test_worked_value() -> None:
    # Two pixels, K_old = 2, K = 3. softmax(z) = (1/2, 1/4, 1/4): −log gives (1, 2, 2) · ln 2; p = (0.6, 0.4).
    # Pixel 1 shows new class 2: q = (0, 0.4, 0.6) costs (0.8 + 1.2) ln 2 = 2.0 ln 2.
    # Pixel 2 is background:    q = (0.6, 0.4, 0) costs (0.6 + 0.8) ln 2 = 1.4 ln 2.
    # Mean over 2 pixels and 3 channels: 3.4 ln 2 / 6.
    logits = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 3, 1, 1).expand(1, 3, 1, 2)
    old_logits = torch.tensor([0.6, 0.4]).log().view(1, 2, 1, 1).expand(1, 2, 1, 2)
    labels = torch.tensor([[[2, 0]]])
    total, count = output_distillation(logits, old_logits, labels, 255)
    assert (total.item(), count) == (pytest.approx(3.4 * math.log(2)), 6)
    loss = LabelGuidedOutputDistillation()(logits, old_logits, labels)
    assert loss.item() == pytest.approx(3.4 * math.log(2) / 6)


@each_golden_case
def test_loss_and_gradient_equal_the_released_implementation(case: int) -> None:
    golden = load_golden(case)
    logits = golden["in_logits"].requires_grad_()
    loss = LabelGuidedOutputDistillation()(logits, golden["in_prev"], golden["in_labels"])
    loss.backward()
    assert_matches_golden(loss, golden["out_lgod"])
    assert logits.grad is not None
    assert_matches_golden(logits.grad, golden["out_grad_lgod"])


@each_golden_case
def test_without_new_classes_it_is_the_released_plain_distillation(case: int) -> None:
    golden = load_golden(case)
    # The released plain form pads nothing: it leaves the new channels out of the softmax and of the mean.
    logits = golden["in_logits"][:, : int(golden["num_old"])]
    labels = torch.zeros_like(golden["in_labels"])
    loss = LabelGuidedOutputDistillation()(logits, golden["in_prev"], labels)
    assert_matches_golden(loss, golden["out_kd"])


# 4 is a new class's id: where it means 'ignore', it is no new class.
@pytest.mark.parametrize("ignore_index", [255, 200, -100, 4])
def test_loss_equals_the_slow_form(ignore_index: int) -> None:
    logits, old_logits, labels = random_batch(seed=0, ignore_index=ignore_index)
    loss = LabelGuidedOutputDistillation(ignore_index)(logits, old_logits, labels)
    expected = slow_distillation(logits, slow_target(old_logits, labels, 5, ignore_index))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_gradient_is_that_of_the_definition_and_reaches_the_new_logits_only() -> None:
    logits, old_logits, labels = random_batch(seed=1)
    logits.requires_grad_()
    old_logits.requires_grad_()
    LabelGuidedOutputDistillation()(logits, old_logits, labels).backward()
    # Σ_k q_k = 1, so every pixel gives softmax(z) − q, over pixels × channels.
    target = slow_target(old_logits.detach(), labels, 5, 255)
    expected = (logits.detach().softmax(dim=1) - target) / logits.numel()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-15)
    assert old_logits.grad is None


def test_totals_and_counts_of_two_parts_add_up_to_those_of_the_batch() -> None:
    logits, old_logits, labels = random_batch(seed=2)
    total, count = output_distillation(logits, old_logits, labels, 255)
    halves = zip(logits.split(1), old_logits.split(1), labels.split(1), strict=True)
    parts = [output_distillation(*half, ignore_index=255) for half in halves]
    torch.testing.assert_close(parts[0][0] + parts[1][0], total, rtol=1e-12, atol=0)
    assert parts[0][1] + parts[1][1] == count == 2 * 5 * 4 * 5


def test_ignored_pixels_count_and_are_distilled_as_background() -> None:
    logits, old_logits, _ = random_batch(seed=3)
    ignored = LabelGuidedOutputDistillation()(logits, old_logits, torch.full((2, 4, 5), 255))
    assert ignored.item() == pytest.approx(plain_distillation(logits, old_logits), rel=1e-10)


def test_confident_background_everywhere_asks_for_background_alone() -> None:
    logits, old_logits, _ = random_batch(seed=4)
    old_logits[:, 0] = 1000  # p_0 = 1 exactly
    loss = LabelGuidedOutputDistillation()(logits, old_logits, torch.zeros(2, 4, 5, dtype=torch.long))
    expected = -logits.log_softmax(dim=1)[:, 0].mean() / 5
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_an_old_model_that_knows_only_background_asks_for_the_label() -> None:
    logits, old_logits, labels = random_batch(seed=5, num_old=1, num_new=4)
    loss = LabelGuidedOutputDistillation()(logits, old_logits, labels)
    background_or_new = labels.where(labels != 255, 0)
    expected = torch.nn.functional.cross_entropy(logits, background_or_new) / 5
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_labels_stay_as_they_were() -> None:
    logits, old_logits, labels = random_batch(seed=6)
    before = labels.clone()
    LabelGuidedOutputDistillation()(logits, old_logits, labels)
    assert torch.equal(labels, before)


@pytest.mark.parametrize(("batch", "num_old"), [(0, 3), (2, 0)], ids=["no pixel", "no old class"])
def test_an_empty_selection_gives_a_connected_zero(batch: int, num_old: int) -> None:
    logits = torch.randn(batch, 5, 4, 4, requires_grad=True)
    labels = torch.zeros(batch, 4, 4, dtype=torch.long)
    loss = LabelGuidedOutputDistillation()(logits, torch.randn(batch, num_old, 4, 4), labels)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_logits_give_a_finite_float32_loss(dtype: torch.dtype) -> None:
    # p = (0, 1), softmax(z) = (1, 0, 0), log softmax(z)_1 = −1.2e5, beyond float16's 65504.
    logits = torch.tensor([6e4, -6e4, 0.0], dtype=dtype).view(1, 3, 1, 1).requires_grad_()
    old_logits = torch.tensor([-6e4, 6e4], dtype=dtype).view(1, 2, 1, 1)
    loss = LabelGuidedOutputDistillation()(logits, old_logits, torch.zeros(1, 1, 1, dtype=torch.long))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * logits[0, 0].item() / 3)
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(
        logits.grad.flatten().float(), torch.tensor([1.0, -1.0, 0.0]) / 3, rtol=4e-3, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_slow_form_of_the_rounded_logits(dtype: torch.dtype) -> None:
    logits, old_logits, labels = random_batch(seed=7)
    logits, old_logits = logits.to(dtype), old_logits.to(dtype)
    loss = LabelGuidedOutputDistillation()(logits, old_logits, labels)
    expected = slow_distillation(logits.double(), slow_target(old_logits.double(), labels, 5, 255))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), num_old=st.integers(1, 5), num_new=st.integers(0, 3))
def test_loss_is_not_negative_and_does_not_depend_on_the_order_of_pixels(
    seed: int, num_old: int, num_new: int
) -> None:
    batch = random_batch(seed, num_old, num_new)
    loss = LabelGuidedOutputDistillation()(*batch).item()
    assert loss >= 0
    order = torch.randperm(4 * 5, generator=torch.Generator().manual_seed(seed))
    shuffled = [x.flatten(-2)[..., order].unflatten(-1, (4, 5)) for x in batch]
    assert LabelGuidedOutputDistillation()(*shuffled).item() == pytest.approx(loss, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), num_old=st.integers(1, 5), num_new=st.integers(0, 3))
def test_without_a_new_pixel_it_is_plain_padded_distillation(seed: int, num_old: int, num_new: int) -> None:
    logits, old_logits, labels = random_batch(seed, num_old, num_new)
    no_new = labels.where(labels == 255, 0)
    loss = LabelGuidedOutputDistillation()(logits, old_logits, no_new)
    assert loss.item() == pytest.approx(plain_distillation(logits, old_logits), rel=1e-10)
