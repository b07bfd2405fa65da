"""Every loss is defined on whatever a batch may hold: finite values and gradients, zero where nothing is asked.

Batches are drawn by hypothesis: shapes, numbers of classes (no old one besides background, no new one), labels of
few kinds (all ignored, all background), values from flat to where squares overflow float16, in every floating
point type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.feature_distillation import AdaptiveFeatureDistillation, reliability
from losses.orthogonal import OrthogonalLoss
from losses.output_distillation import LabelGuidedOutputDistillation
from losses.pseudo_label import SelectivePseudoLabel
from methods import Method, Output, means
from methods.mbs import MBS
from models import SegOutput

IGNORED = 255
LARGEST = 1.6e4  # the gradient of the square of a difference of two of these still is a float16
quick = settings(max_examples=60, deadline=None, derandomize=True)


@dataclass
class Batch:
    """Labels of a step, and what the model and the old model might return for its images."""

    labels: Tensor
    output: Output
    old: Output
    num_new: int

    @property
    def num_old(self) -> int:
        return self.old.logits.shape[1]


@st.composite
def batches(draw: st.DrawFn, kinds: str = "0n!") -> Batch:
    """Draw a batch whose labels are of some of the kinds: background 0, new classes n, ignored !."""

    def between(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    num_old, num_new = between(1, 4), between(0, 3)
    images, height, width, rows, columns, depth = (between(1, top) for top in (3, 7, 7, 4, 4, 5))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, LARGEST / 3]))
    generator = torch.Generator().manual_seed(between(0, 2**32))
    chosen = draw(st.sets(st.sampled_from(kinds), min_size=1))
    classes = {"0": [0], "n": list(range(num_old, num_old + num_new)), "!": [IGNORED]}
    choices = torch.tensor([c for kind in sorted(chosen) for c in classes[kind]] or [IGNORED])

    def normal(*shape: int) -> Tensor:
        values = scale * torch.randn(shape, generator=generator)
        return values.clamp(-LARGEST, LARGEST).to(dtype).requires_grad_()

    def output(num_classes: int) -> Output:
        found = SegOutput(
            normal(images, num_classes, height, width),
            normal(images, num_classes, rows, columns),
            normal(images, depth, rows, columns),
            normal(num_classes, depth),
            None,
        )
        return cast(Output, found)

    labels = choices[torch.randint(len(choices), (images, height, width), generator=generator)]
    return Batch(labels, output(num_old + num_new), output(num_old), num_new)


def make_mbs(batch: Batch, **options: float) -> MBS:
    """The whole method for the step of a batch."""
    return MBS(MBS.Options.model_validate(options), batch.num_old, batch.num_new)


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The finite gradients of a finite scalar; zeros where an input takes no part."""
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss.dtype in (torch.float32, torch.float64), "sums are taken in float32 at least"
    # Terms of a method share a node of the graph.
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    result = [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
    assert all(gradient.isfinite().all() for gradient in result)
    return result


@quick
@given(batches(), st.floats(0, 1))
def test_pseudo_labels_change_background_only_and_into_what_the_old_model_knows(
    batch: Batch, threshold: float
) -> None:
    labels, logits = batch.labels, batch.old.logits
    found = SelectivePseudoLabel(threshold)(labels, logits)
    assert (found.dtype, found.shape, found.requires_grad) == (torch.int64, labels.shape, False)
    is_changed = found != labels
    assert not is_changed[labels != 0].any()
    old_class = logits.argmax(dim=1)
    is_taken_over = is_changed & (found != IGNORED)
    assert torch.equal(found[is_taken_over], old_class[is_taken_over])
    probability = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
    assert (probability.amax(dim=1)[is_taken_over] >= threshold).all()
    assert (probability[:, 0][is_changed & (found == IGNORED)] <= 0.5).all()
    if batch.num_old == 1:
        assert not is_changed.any(), "an old model that knows the background only teaches nothing"


@quick
@given(batches())
def test_where_the_old_model_is_sure_of_background_labels_stay_and_features_are_held(batch: Batch) -> None:
    sure = torch.zeros_like(batch.old.logits)
    sure[:, 0] = 1000
    assert torch.equal(SelectivePseudoLabel(0.7)(batch.labels, sure), batch.labels)
    grid = torch.zeros_like(batch.old.grid_logits)
    grid[:, 0] = 1000
    weights = reliability(torch.zeros_like(batch.labels), grid)
    assert torch.equal(weights, torch.ones_like(weights))


@quick
@given(batches())
def test_reliability_is_a_weight_that_leaves_new_and_ignored_cells_out(batch: Batch) -> None:
    weights = reliability(batch.labels, batch.old.grid_logits)
    assert weights.shape == batch.old.grid_logits.shape[:1] + batch.old.grid_logits.shape[2:]
    assert not weights.requires_grad
    assert weights.isfinite().all()
    assert ((weights >= 0) & (weights <= 1)).all()
    if not (batch.labels == 0).any():
        assert not weights.any(), "labels hold no old class but background"


@quick
@given(batches())
def test_feature_distillation_is_finite_and_moves_weighted_cells_only(batch: Batch) -> None:
    weights = reliability(batch.labels, batch.old.grid_logits)
    features, old = batch.output.features, batch.old.features
    loss = AdaptiveFeatureDistillation()(features, old, weights)
    (gradient, to_old) = gradients(loss, features, old)
    assert loss >= 0
    assert not to_old.any()
    assert not gradient.masked_select(weights[:, None] == 0).any()
    if not weights.any():
        assert loss == 0
    assert AdaptiveFeatureDistillation()(features, features, weights) == 0


@quick
@given(batches())
def test_an_overflow_in_a_cell_of_weight_zero_does_not_spread(batch: Batch) -> None:
    features = torch.full_like(batch.output.features, torch.inf).requires_grad_()
    weights = torch.zeros_like(features[:, 0], dtype=torch.float32)
    loss = AdaptiveFeatureDistillation()(features, batch.old.features, weights)
    assert loss == 0
    assert not gradients(loss, features)[0].any()


@quick
@given(batches())
def test_output_distillation_is_the_cross_entropy_with_the_moved_background(batch: Batch) -> None:
    logits, old = batch.output.logits, batch.old.logits
    loss = LabelGuidedOutputDistillation()(logits, old, batch.labels)
    gradient, to_old = gradients(loss, logits, old)
    assert loss >= 0
    assert not to_old.any()
    # The slow form: q as a whole tensor, the background's share added to the labelled new class.
    target = F.pad(old.detach().double().softmax(dim=1), (0, 0, 0, 0, 0, batch.num_new))
    for c in range(batch.num_old, batch.num_old + batch.num_new):
        is_c = batch.labels == c
        target[:, c][is_c] = target[:, 0][is_c]
        target[:, 0][is_c] = 0
    expected = -(target * logits.detach().double().log_softmax(dim=1)).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    # Both sides sum to one, so a shift of all logits of a pixel changes nothing.
    assert gradient.double().sum(dim=1).abs().max() < 1e-2


@quick
@given(batches())
def test_the_orthogonal_loss_stays_in_its_range_and_moves_new_tokens_only(batch: Batch) -> None:
    tokens, num_new = batch.output.class_tokens, batch.num_new
    loss = OrthogonalLoss()(tokens, num_new)
    (gradient,) = gradients(loss, tokens)
    assert 0 <= loss <= num_new / len(tokens) + 1e-6
    assert not gradient[: batch.num_old].any()
    if num_new == 0:
        assert loss == 0


@quick
@given(batches(), st.booleans())
def test_mbs_is_finite_in_every_term_and_gradient(batch: Batch, weighted: bool) -> None:
    method = make_mbs(batch, pseudo_label_weight=0.5 if weighted else 1.0)
    targets = method.targets(batch.labels, batch.old)
    assert all(count.isfinite() for count in targets.counts.values())
    terms = means(method.terms(batch.output, batch.old, targets), targets.counts)
    assert list(terms) == ["cross_entropy", "feature_distillation", "output_distillation", "orthogonal"]
    inputs = [batch.output.logits, batch.output.features, batch.output.class_tokens]
    for term in terms.values():
        assert term >= 0
        gradients(term, *inputs)
    old = [batch.old.logits, batch.old.grid_logits, batch.old.features]
    assert not any(gradient.any() for gradient in gradients(torch.stack(list(terms.values())).sum(), *old))


@quick
@given(batches(kinds="!"))
def test_a_batch_of_ignored_pixels_asks_nothing_of_classes_and_features(batch: Batch) -> None:
    assert (batch.labels == IGNORED).all()
    method = make_mbs(batch)
    targets = method.targets(batch.labels, batch.old)
    assert [int(targets.counts[name]) for name in ("labelled", "cells")] == [0, 0]
    terms = means(method.terms(batch.output, batch.old, targets), targets.counts)
    for name in ("cross_entropy", "feature_distillation"):
        assert terms[name] == 0
        for gradient in gradients(terms[name], batch.output.logits, batch.output.features):
            assert not gradient.any()


@quick
@given(batches(kinds="0!"))
def test_cross_entropy_moves_labelled_pixels_only(batch: Batch) -> None:
    method = Method(Method.Options(), batch.num_old, batch.num_new)
    targets = method.targets(batch.labels, batch.old)
    terms = means(method.terms(batch.output, batch.old, targets), targets.counts)
    assert list(terms) == ["cross_entropy"]
    (gradient,) = gradients(terms["cross_entropy"], batch.output.logits)
    assert not gradient.masked_select((batch.labels == IGNORED)[:, None]).any()
    is_labelled = batch.labels != IGNORED
    if is_labelled.any():
        log_probability = batch.output.logits.detach().double().log_softmax(dim=1)[:, 0]
        expected = -log_probability[is_labelled].mean()
        torch.testing.assert_close(terms["cross_entropy"].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_and_sums_beyond_float16_stay_finite(dtype: torch.dtype) -> None:
    features = torch.full((2, 8, 16, 16), 6e4, dtype=dtype, requires_grad=True)
    loss = AdaptiveFeatureDistillation()(features, -features.detach(), torch.ones(2, 16, 16))
    torch.testing.assert_close(loss, (2 * features[0, 0, 0, 0].float()).square().detach())
    (gradient,) = gradients(loss, features)
    expected = (4 * features.detach().float() / features.numel()).to(dtype)
    torch.testing.assert_close(gradient, expected)
    tokens = torch.full((5, 8), 6e4, dtype=dtype, requires_grad=True)
    torch.testing.assert_close(OrthogonalLoss()(tokens, 2), torch.tensor(2 / 5))
    gradients(OrthogonalLoss()(tokens, 2), tokens)
