"""losses/fused.py: in pieces and with a closed-form gradient, it is what the plain forms give."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses import fused
from losses.fused import select_pseudo_labels_in_pieces
from losses.output_distillation import background_heirs
from losses.pieces import arguments, open_logits, pixel_chunks
from tools.bench.measure import live_bytes

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Apart from the terms' sum, so that a gradient sent to the wrong term shows.
SCALES = (0.3, 1.7)


class Batch(NamedTuple):
    """What the terms look at; labels hold new classes, background and 255, targets old classes besides."""

    logits: Tensor
    old_logits: Tensor
    labels: Tensor
    targets: Tensor
    weights: Tensor


def random_batch(
    seed: int = 0,
    num_old: int = 4,
    num_new: int = 2,
    size: tuple[int, int, int] = (2, 9, 7),
    kinds: str = "background new ignored",
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """`kinds`: what the labels hold."""
    generator = torch.Generator().manual_seed(seed)
    batch, *pixels = size
    new = list(range(num_old, num_old + num_new)) if "new" in kinds else []
    ids = ([0] if "background" in kinds else []) + new + ([255] if "ignored" in kinds else [])
    labels = torch.tensor(ids)[torch.randint(len(ids), size, generator=generator)]
    old_classes = torch.randint(max(num_old, 1), size, generator=generator)
    return Batch(
        3 * torch.randn(batch, num_old + num_new, *pixels, generator=generator, dtype=dtype),
        3 * torch.randn(batch, num_old, *pixels, generator=generator, dtype=dtype),
        labels,
        torch.where(labels == 0, old_classes, labels),
        torch.rand(size, generator=generator, dtype=dtype),
    )


def plain_terms(batch: Batch) -> tuple[Tensor, Tensor]:
    """Both terms as their definitions read: one log-softmax each, whole tensors, autograd's own gradient."""
    logits, old_logits, labels, targets, weights = batch
    cross_entropy = weights * F.cross_entropy(logits, targets, ignore_index=255, reduction="none")
    num_old, num_classes = old_logits.shape[1], logits.shape[1]
    probabilities = old_logits.softmax(dim=1)
    expected = F.pad(probabilities, (0, 0, 0, 0, 0, num_classes - num_old))
    for new in range(num_old, num_classes) if num_old else ():
        expected[:, new] = probabilities[:, 0] * (labels == new)
    if num_old:
        expected[:, 0] = probabilities[:, 0] * ((labels < num_old) | (labels == 255))
    return cross_entropy.sum(), -(expected * logits.log_softmax(dim=1)).sum()


def our_terms(batch: Batch) -> tuple[Tensor, Tensor]:
    heirs = background_heirs(batch.labels, batch.old_logits.shape[1], 255)
    return fused.softmax_terms(
        batch.logits, targets=batch.targets, weights=batch.weights, old_logits=batch.old_logits, heirs=heirs
    )


def gradient_of(terms: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(SCALES[0] * terms[0] + SCALES[1] * terms[1], logits)
    return gradient


def assert_plain_values_and_gradients(batch: Batch) -> None:
    batch.logits.requires_grad_()
    exact = batch._replace(
        logits=batch.logits.detach().double().requires_grad_(),
        old_logits=batch.old_logits.double(),
        weights=batch.weights.double(),
    )
    ours, plain = our_terms(batch), plain_terms(exact)
    tolerance = TOLERANCE[batch.logits.dtype]
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == batch.logits.dtype
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    gradient, expected = gradient_of(ours, batch.logits), gradient_of(plain, exact.logits)
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    num_old=st.integers(1, 6),
    num_new=st.integers(0, 4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    kinds=st.sampled_from(["background new ignored", "background", "ignored", "background ignored"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_values_and_gradients_are_those_of_the_plain_forms(
    seed: int, num_old: int, num_new: int, size: tuple[int, int, int], kinds: str, dtype: torch.dtype
) -> None:
    assert_plain_values_and_gradients(random_batch(seed, num_old, num_new, size, kinds, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_old_class_leaves_the_cross_entropy(dtype: torch.dtype) -> None:
    batch = random_batch(num_old=0, num_new=3, kinds="new ignored", dtype=dtype)
    assert_plain_values_and_gradients(batch)
    assert our_terms(batch)[1].item() == 0


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pieces_are_put_together_again(dtype: torch.dtype) -> None:
    assert_plain_values_and_gradients(random_batch(dtype=dtype))


def test_an_image_of_several_real_pieces_is_cut_without_gap_or_overlap() -> None:
    logits = torch.zeros(2, 21, 300 * 300)
    pieces = [piece for piece, _ in pixel_chunks(0, open_logits(logits, None))]
    assert len(pieces) > 2
    assert torch.cat([torch.arange(300 * 300)[piece] for piece in pieces]).equal(torch.arange(300 * 300))
    assert all(logits[..., piece].numel() <= 2**20 for piece in pieces)
    assert_plain_values_and_gradients(random_batch(size=(1, 500, 400)))


def test_pseudo_labels_of_several_pieces_are_those_of_the_parts() -> None:
    batch = random_batch(num_old=21, size=(2, 200, 200), dtype=torch.float32)
    assert len(list(pixel_chunks(0, open_logits(*arguments(batch.old_logits))))) > 1
    whole = select_pseudo_labels_in_pieces(batch.labels, batch.old_logits, 0.5, 255)
    rows = [
        select_pseudo_labels_in_pieces(labels, logits, 0.5, 255)
        for labels, logits in zip(batch.labels.split(20, 1), batch.old_logits.split(20, 2), strict=True)
    ]
    assert torch.equal(whole, torch.cat(rows, dim=1))
    assert ((whole > 0) & (whole < 21)).float().mean() > 0.1


@pytest.mark.usefixtures("_small_pieces")
def test_the_memory_format_makes_no_difference_and_is_kept() -> None:
    batch = random_batch()
    logits, old_logits = (
        x.contiguous(memory_format=torch.channels_last) for x in (batch.logits, batch.old_logits)
    )
    other = batch._replace(logits=logits, old_logits=old_logits)
    assert_plain_values_and_gradients(other)
    gradient = gradient_of(our_terms(other), other.logits)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    padded = F.pad(batch.logits.detach(), (0, 3))[..., :-3]
    assert not padded.is_contiguous()
    assert_plain_values_and_gradients(batch._replace(logits=padded))


@pytest.mark.usefixtures("_small_pieces")
def test_logits_far_from_zero_lose_no_digits() -> None:
    batch = random_batch(dtype=torch.float32)
    far = batch._replace(logits=batch.logits + 2.0**14, old_logits=batch.old_logits - 2.0**14)
    assert_plain_values_and_gradients(far)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_added_up_in_float32_under_autocast_too(dtype: torch.dtype, autocast: bool) -> None:
    batch = random_batch(dtype=dtype)
    batch.logits.requires_grad_()
    exact = batch._replace(
        logits=batch.logits.detach().double().requires_grad_(),
        old_logits=batch.old_logits.double(),
        weights=batch.weights.double(),
    )
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        ours = our_terms(batch)
    for a, b in zip(ours, plain_terms(exact), strict=True):
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(b.item(), rel=1e-5)
    gradient = gradient_of(ours, batch.logits)
    assert gradient.dtype == dtype
    expected = gradient_of(plain_terms(exact), exact.logits)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=1e-6)


def test_a_half_precision_old_model_beside_a_float32_model_is_taken() -> None:
    batch = random_batch(dtype=torch.float32)
    old_logits = batch.old_logits.bfloat16()
    assert_plain_values_and_gradients(batch._replace(old_logits=old_logits))


def test_terms_without_arguments_are_zeros_connected_to_the_logits() -> None:
    logits = random_batch().logits.requires_grad_()
    terms = fused.softmax_terms(logits)
    assert [term.item() for term in terms] == [0, 0]
    assert torch.equal(gradient_of(terms, logits), torch.zeros_like(logits))


def test_one_term_alone_has_its_own_gradient() -> None:
    batch = random_batch()
    batch.logits.requires_grad_()
    for index in range(2):
        ours, plain = (
            torch.autograd.grad(terms[index], batch.logits)[0]
            for terms in (our_terms(batch), plain_terms(batch))
        )
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_the_inputs_are_left_as_they_were_and_a_second_backward_gives_the_same() -> None:
    batch = random_batch()
    before = [x.clone() for x in batch]
    batch.logits.requires_grad_()
    total = sum(our_terms(batch))
    assert isinstance(total, Tensor)
    first, second = (torch.autograd.grad(total, batch.logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


def test_a_gradient_of_the_gradient_is_refused() -> None:
    batch = random_batch()
    batch.logits.requires_grad_()
    (gradient,) = torch.autograd.grad(our_terms(batch)[0], batch.logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), batch.logits)


def test_it_runs_within_a_compiled_function() -> None:
    batch = random_batch()
    batch.logits.requires_grad_()

    @torch.compile(backend="eager")
    def doubled(batch: Batch) -> Tensor:
        return 2 * our_terms(batch)[1]

    assert doubled(batch).item() == pytest.approx(2 * plain_terms(batch)[1].item(), rel=1e-10)


def test_a_class_that_the_model_does_not_know_is_an_error() -> None:
    batch = random_batch()
    with pytest.raises(RuntimeError, match="index 6 is out of bounds"):
        our_terms(batch._replace(targets=torch.full_like(batch.targets, 6)))


def test_little_more_than_the_gradient_is_made() -> None:
    batch = random_batch(num_old=20, num_new=1, size=(1, 512, 512), dtype=torch.float32)
    batch.logits.requires_grad_()

    def forward_and_backward() -> None:
        sum(our_terms(batch)).backward()  # type: ignore[union-attr]

    # The plain forms keep two log-softmaxes and a softmax for backward, and make two gradients.
    assert live_bytes(forward_and_backward, torch.device("cpu")) < 1.7 * batch.logits.nbytes
