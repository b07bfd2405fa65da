"""losses/class_groups.py and the sums over it in losses/fused.py: in pieces, they are what the plain forms give."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.binary_cross_entropy import binary_cross_entropy, sigmoid_pseudo_labels
from losses.binary_distillation import binary_distillation
from losses.class_groups import class_groups as groups_of
from losses.entropy_pseudo_label import entropy_pseudo_labels, normalised_entropy
from losses.fused import (
    binary_terms,
    entropy_pseudo_labels_in_pieces,
    logit_terms,
    sigmoid_pseudo_labels_in_pieces,
    unbiased_terms,
)
from losses.logit_distillation import logit_distillation
from losses.unbiased import unbiased_cross_entropy, unbiased_distillation
from tools.bench.measure import live_bytes

Terms = tuple[Tensor, Tensor]
Form = Callable[[Tensor, Tensor, Tensor], Terms]


def plain_unbiased(logits: Tensor, old_logits: Tensor, labels: Tensor) -> Terms:
    cross_entropy, _ = unbiased_cross_entropy(logits, labels, old_logits.shape[1], 255)
    return cross_entropy, unbiased_distillation(logits, old_logits)[0]


def plain_logit(logits: Tensor, old_logits: Tensor, labels: Tensor) -> Terms:
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    return cross_entropy, logit_distillation(logits, old_logits)[0]


def plain_binary(logits: Tensor, old_logits: Tensor, labels: Tensor) -> Terms:
    num_old = old_logits.shape[1]
    cross_entropy, _ = binary_cross_entropy(logits, labels, 255, first_class=num_old, positive_weight=2.5)
    return cross_entropy, binary_distillation(logits, old_logits)[0]


def our_binary(logits: Tensor, old_logits: Tensor, labels: Tensor) -> Terms:
    return binary_terms(logits, labels, 255, None, old_logits.shape[1], 2.5, old_logits)


FORMS: dict[str, tuple[Form, Form]] = {
    "unbiased": (lambda z, old, labels: unbiased_terms(z, old, labels, 255), plain_unbiased),
    "binary": (our_binary, plain_binary),
    "logits": (lambda z, old, labels: logit_terms(z, old, labels, 255), plain_logit),
}
"""Our form and the plain one."""


def batch(
    seed: int = 0,
    num_old: int = 4,
    num_new: int = 2,
    size: tuple[int, int, int] = (2, 9, 7),
    scale: float = 3.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a model and of the old one, and labels: any class, and 255."""
    generator = torch.Generator().manual_seed(seed)
    batch, *pixels = size
    labels = torch.tensor([*range(num_old + num_new), 255])
    labels = labels[torch.randint(len(labels), size, generator=generator)]
    logits, old_logits = (
        scale * torch.randn(batch, k, *pixels, generator=generator, dtype=torch.float64)
        for k in (num_old + num_new, num_old)
    )
    return logits.to(dtype).requires_grad_(), old_logits.to(dtype), labels


def assert_same(form: str, inputs: tuple[Tensor, Tensor, Tensor], tolerance: float) -> None:
    """Both terms, and the gradient of each alone, are those of the plain form in float64."""
    ours, plain = FORMS[form]
    logits, old_logits, labels = inputs
    exact = logits.detach().double().requires_grad_()
    for a, b in zip(ours(logits, old_logits, labels), plain(exact, old_logits.double(), labels), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
        gradients = [torch.autograd.grad(x, y, retain_graph=True)[0] for x, y in ((a, logits), (b, exact))]
        torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 10**6), num_old=st.integers(1, 4), num_new=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_both_terms_and_their_gradients_are_those_of_the_plain_form(
    form: str, seed: int, num_old: int, num_new: int
) -> None:
    assert_same(form, batch(seed, num_old, num_new), 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shift", [0.0, 3000.0])
def test_single_precision_loses_no_digits_far_from_0_or_between_classes_far_apart(
    form: str, shift: float
) -> None:
    logits, old_logits, labels = batch(scale=80.0, dtype=torch.float32)
    moved = (logits.detach() + shift).requires_grad_()
    assert_same(form, (moved, old_logits + shift, labels), 2e-4 if shift else 1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_single_precision(form: str, dtype: torch.dtype) -> None:
    logits, old_logits, labels = batch(size=(2, 64, 64), dtype=dtype)
    terms = FORMS[form][0](logits, old_logits, labels)
    assert {term.dtype for term in terms} == {torch.float32}
    exact = FORMS[form][1](logits.detach().double(), old_logits.double(), labels)
    for term, expected in zip(terms, exact, strict=True):
        torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(sum(terms), logits)  # type: ignore[arg-type]
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_maps_by_hand(scores: str) -> None:
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0], dtype=torch.float64).view(1, 4, 1, 1).requires_grad_()
    old_logits = torch.tensor([0.0, 2.0], dtype=torch.float64).view(1, 2, 1, 1)
    maps = groups_of(scores, logits, torch.tensor([[[3]]]), 2, 255, old_logits)
    z = logits.detach().flatten()
    if scores == "softmax":
        z, p = z - 3, torch.tensor([1.0, torch.e**2]) / (1 + torch.e**2)
        sums = z[1], z[2:].exp().sum().log()
    else:
        p = torch.tensor([0.5, 1 / (1 + torch.e**-2)])
        sums = (1 + z[1].exp()).log(), (1 + z[2:].exp()).log().sum()
    expected = z[0], *sums, z[3], p[1] * z[1], p[0]
    assert [x.item() for x in maps] == pytest.approx([float(x) for x in expected], rel=1e-6)


@pytest.mark.parametrize("first_class", [0, 1, 3])
def test_binary_cross_entropy_alone_asks_from_a_class_on_with_weights_of_pixels(first_class: int) -> None:
    logits, _, labels = batch()
    weights = torch.rand(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, nothing = binary_terms(logits, labels, 255, weights, first_class)
    plain, _ = binary_cross_entropy(logits, labels, 255, weights, first_class)
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (ours, plain)]
    torch.testing.assert_close(*gradients)
    assert nothing == 0


def test_a_pixel_without_a_label_has_none_given_and_no_gradient_of_it() -> None:
    logits, _, _ = batch(num_old=1, num_new=2, size=(1, 1, 1))
    maps = groups_of("sigmoid", logits, torch.full((1, 1, 1), 255), 1, 255)
    assert [maps.given.item(), maps.agreement.item(), maps.old_background.item()] == [0, 0, 0]
    assert maps.old.item() == 0, "background is the only old class"
    assert torch.autograd.grad(maps.given.sum(), logits)[0].abs().sum() == 0


def test_no_gradient_reaches_the_old_model_and_inputs_stay_as_they_were() -> None:
    inputs = batch()
    before = [x.clone() for x in inputs]
    inputs[1].requires_grad_()
    total = sum(unbiased_terms(*inputs, 255))
    assert isinstance(total, Tensor)
    assert torch.autograd.grad(total, inputs[1], allow_unused=True, retain_graph=True) == (None,)
    first, second = (torch.autograd.grad(total, inputs[0], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_little_more_than_the_gradient_is_made() -> None:
    inputs = batch(num_old=20, num_new=1, size=(1, 512, 512), dtype=torch.float32)

    def forward_and_backward() -> None:
        sum(unbiased_terms(*inputs, 255)).backward()  # type: ignore[union-attr]

    # The plain forms keep five tensors of this size for backward. A map is a 21st of one.
    assert live_bytes(forward_and_backward, torch.device("cpu")) < 2.2 * inputs[0].nbytes


@pytest.mark.usefixtures("_small_pieces")
@given(seed=st.integers(0, 10**6), num_old=st.integers(2, 5))
@settings(max_examples=10, deadline=None)
def test_pseudo_labels_by_entropy_are_those_of_the_plain_form(seed: int, num_old: int) -> None:
    _, old_logits, labels = batch(seed, num_old)
    thresholds = torch.rand(num_old, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = entropy_pseudo_labels_in_pieces(labels, old_logits, thresholds, 255)
    plain = entropy_pseudo_labels(labels, old_logits, thresholds, 255)
    margin = (normalised_entropy(old_logits) - thresholds[old_logits.argmax(dim=1)]).abs()
    assert torch.equal(ours[margin > 1e-9], plain[margin > 1e-9])


@pytest.mark.usefixtures("_small_pieces")
@given(seed=st.integers(0, 10**6), num_old=st.integers(1, 5), threshold=st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=10, deadline=None)
def test_pseudo_labels_by_sigmoids_are_those_of_the_plain_form(
    seed: int, num_old: int, threshold: float
) -> None:
    _, old_logits, labels = batch(seed, num_old)
    old_logits = old_logits.round()  # some are equal
    for known in (None, 3):
        ours = sigmoid_pseudo_labels_in_pieces(labels, old_logits, threshold, known)
        assert torch.equal(ours, sigmoid_pseudo_labels(labels, old_logits, threshold, known))
