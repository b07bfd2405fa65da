"""methods/mbs.py: the four terms by hand and against their modules; every part can be left out or made plain."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses.feature_distillation import AdaptiveFeatureDistillation, reliability
from losses.orthogonal import OrthogonalLoss
from losses.output_distillation import LabelGuidedOutputDistillation
from losses.pseudo_label import SelectivePseudoLabel
from methods import Output, means
from methods.mbs import MBS
from models import DeepLabV3, SegOutput
from tests.support.outputs import (
    LABELS,
    NUM_NEW,
    NUM_OLD,
    OLD,
    OUTPUT,
    make_method,
    part_of,
    slow_distillation,
    terms_of,
)

WEIGHTS: dict[str, Any] = {
    "threshold": 0.5,
    "feature_weight": 0.7,
    "output_weight": 11.0,
    "orthogonal_weight": 0.3,
}
PARTS = ("feature_distillation", "output_distillation", "orthogonal")


def make_mbs(**options: Any) -> MBS:
    method = make_method(MBS, **{**WEIGHTS, **options})
    assert isinstance(method, MBS)
    return method


def test_each_term_is_its_module_times_its_weight() -> None:
    terms = terms_of(make_mbs())
    logits, old_logits = OUTPUT.logits, OLD.logits
    pseudo_labels = SelectivePseudoLabel(0.5)(LABELS, old_logits)
    weights = reliability(pseudo_labels, OLD.grid_logits)
    features = AdaptiveFeatureDistillation()(OUTPUT.features, OLD.features, weights)
    expected = {
        "cross_entropy": F.cross_entropy(logits, pseudo_labels, ignore_index=255),
        "feature_distillation": 0.7 * features,
        "output_distillation": 11 * LabelGuidedOutputDistillation()(logits, old_logits, LABELS),
        "orthogonal": 0.3 * OrthogonalLoss()(OUTPUT.class_tokens, NUM_NEW),
    }
    assert list(terms) == list(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])
        assert term > 0


def test_the_gradient_of_the_sum_reaches_the_model_and_not_the_old_one() -> None:
    leaves = OUTPUT.logits, OUTPUT.features, OUTPUT.class_tokens
    old = OLD.logits, OLD.grid_logits, OLD.features, OLD.class_tokens
    total = torch.stack(list(terms_of(make_mbs()).values())).sum()
    gradients = torch.autograd.grad(total, [*leaves, *old], allow_unused=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[:3])
    assert gradients[3:] == (None,) * 4


def test_terms_by_hand() -> None:
    # Two pixels on a grid of the same size; logits of 0 make every class as likely.
    old = SegOutput(
        torch.tensor([[[[0.0, 0.0]], [[4.0, 0.0]]]]),
        torch.zeros(1, 2, 1, 2),
        torch.zeros(1, 2, 1, 2),
        torch.eye(2),
        None,
    )
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    output = SegOutput(
        torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2), torch.full((1, 2, 1, 2), 3.0), tokens, None
    )
    labels = torch.tensor([[[0, 2]]])
    method = make_method(MBS, num_old=2, num_new=1, threshold=0.7, feature_weight=10.0, output_weight=3.0)
    targets = method.targets(labels, cast(Output, old))
    assert targets.pseudo_labels.tolist() == [[[1, 2]]]
    assert targets.own["cells"].tolist() == [[[1, 0]]]
    counts = {name: int(count) for name, count in targets.counts.items()}
    assert counts == {"pixels": 2, "images": 1, "batches": 1, "labelled": 2, "cells": 1}
    terms = means(method.terms(cast(Output, output), cast(Output, old), targets), targets.counts)
    log3 = torch.log(torch.tensor(3.0)).item()
    assert terms["cross_entropy"].item() == pytest.approx(log3)
    assert terms["feature_distillation"].item() == pytest.approx(10 * 9)
    assert terms["output_distillation"].item() == pytest.approx(3 * log3 / 3), "a mean over 3 channels"
    assert terms["orthogonal"].item() == pytest.approx((0.6 + 0.8) / 2 / 3)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_left_out_has_no_term_and_the_others_stay(name: str) -> None:
    everything, terms = terms_of(make_mbs()), terms_of(make_mbs(**{name: False}))
    assert set(everything) - set(terms) == {name}
    for other, term in terms.items():
        torch.testing.assert_close(term, everything[other])


def test_without_pseudo_labels_the_given_labels_steer_cross_entropy_and_features() -> None:
    terms = terms_of(make_mbs(pseudo_labels=False))
    weights = reliability(LABELS, OLD.grid_logits)
    features = AdaptiveFeatureDistillation()(OUTPUT.features, OLD.features, weights)
    torch.testing.assert_close(terms["feature_distillation"], 0.7 * features)
    expected = F.cross_entropy(OUTPUT.logits, LABELS, ignore_index=255)
    torch.testing.assert_close(terms["cross_entropy"], expected)


def test_only_selective_pseudo_labels_ignore_what_the_old_model_is_unsure_of() -> None:
    # An old class is likelier than background, and none is sure.
    logits = torch.tensor([0.2, 0.5, 0.0]).view(1, 3, 1, 1)
    old = cast(Output, SegOutput(logits, logits, logits, torch.eye(3), None))
    for selective, expected in ((True, 255), (False, 0)):
        method = make_mbs(selective=selective, threshold=0.7)
        assert int(method.targets(torch.zeros(1, 1, 1, dtype=torch.int64), old).pseudo_labels) == expected


def test_feature_distillation_that_is_not_adaptive_is_the_mean_squared_difference() -> None:
    term = terms_of(make_mbs(adaptive=False))["feature_distillation"]
    torch.testing.assert_close(term, 0.7 * F.mse_loss(OUTPUT.features, OLD.features))


def test_output_distillation_that_is_not_label_guided_is_that_of_the_old_classes() -> None:
    term = terms_of(make_mbs(label_guided=False))["output_distillation"]
    torch.testing.assert_close(term.double(), 11 * slow_distillation("softmax"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_the_pseudo_label_weight_counts_pseudo_labelled_pixels_less(weight: float) -> None:
    terms = terms_of(make_mbs(pseudo_label_weight=weight))
    pseudo_labels = SelectivePseudoLabel(0.5)(LABELS, OLD.logits)
    total, count, num_pseudo = 0.0, 0, 0
    log_probabilities = OUTPUT.logits.detach().double().log_softmax(dim=1)
    for b, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(8), torch.arange(8)).tolist():
        target = int(pseudo_labels[b, row, column])
        if target == 255:
            continue
        is_pseudo = target != int(LABELS[b, row, column])
        total -= (weight if is_pseudo else 1.0) * float(log_probabilities[b, target, row, column])
        count += 1
        num_pseudo += is_pseudo
    assert num_pseudo > 5
    assert terms["cross_entropy"].item() == pytest.approx(total / count)


@pytest.mark.parametrize(
    "kept", [(), ("pseudo_labels",), ("feature_distillation",), ("output_distillation",)]
)
def test_the_old_model_is_needed_by_three_of_the_four_parts(kept: tuple[str, ...]) -> None:
    parts = ("pseudo_labels", "feature_distillation", "output_distillation")
    method = make_mbs(**{part: part in kept for part in parts})
    assert method.needs_old_model is bool(kept)


def test_a_batch_of_ignored_pixels_is_finite_and_has_no_cross_entropy_and_no_features() -> None:
    terms = terms_of(make_mbs(), torch.full_like(LABELS, 255))
    assert terms["cross_entropy"].item() == 0
    assert terms["feature_distillation"].item() == 0
    total = torch.stack(list(terms.values())).sum()
    leaves = [OUTPUT.logits, OUTPUT.features, OUTPUT.class_tokens]
    gradients = torch.autograd.grad(total, leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1].abs().sum() == 0


def test_terms_of_micro_batches_add_up_to_those_of_the_batch() -> None:
    method = make_mbs(pseudo_label_weight=0.5)
    labels = LABELS.clone()
    labels[0, 1:] = 255  # one image has next to nothing to learn from
    whole, parts = terms_of(method, labels), []
    counts = dict(method.targets(labels, cast(Output, OLD)).counts)
    counts["batches"] = torch.tensor(2)
    for i in range(2):
        output, old = cast(Output, part_of(OUTPUT, i)), cast(Output, part_of(OLD, i))
        targets = method.targets(labels[i : i + 1], old)
        parts.append(means(method.terms(output, old, targets), counts))
    for name, term in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], term)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_finite_float32_terms(dtype: torch.dtype) -> None:
    def halve(output: SegOutput) -> SegOutput:
        leaves = (output.logits, output.grid_logits, output.features, output.class_tokens)
        logits, grid_logits, features, tokens = ((30 * x).to(dtype) for x in leaves)
        return SegOutput(logits, grid_logits, features, tokens, None)

    for term in terms_of(make_mbs(), output=halve(OUTPUT), old=halve(OLD)).values():
        assert term.dtype == torch.float32
        assert term.isfinite()


def test_class_embeddings_add_their_plain_mean_over_old_classes_and_all_images_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(2, NUM_OLD + NUM_NEW, 6, generator=generator)
    old_embeddings = torch.randn(2, NUM_OLD, 6, generator=generator)
    method = make_mbs()
    expected = 0.7 * F.mse_loss(embeddings[:, :NUM_OLD], old_embeddings)
    whole = method.targets(LABELS, cast(Output, OLD)).counts
    parts = []
    for index in (0, 1):
        one = slice(index, index + 1)
        output = cast(Output, part_of(OUTPUT, index)._replace(class_embeddings=embeddings[one]))
        old = cast(Output, part_of(OLD, index)._replace(class_embeddings=old_embeddings[one]))
        targets = method.targets(LABELS[one], old)
        parts.append(means(method.terms(output, old, targets), whole)["embedding_distillation"])
    torch.testing.assert_close(parts[0] + parts[1], expected)


def test_another_order_of_the_classes_gives_the_same_terms_and_the_permuted_gradient() -> None:
    # Old classes 1 and 2 change places, and new classes 3 and 4.
    order = torch.tensor([0, 2, 1, 4, 3])
    new_id = torch.arange(256)
    new_id[order] = torch.arange(5)
    method = make_mbs()

    def differentiate(output: SegOutput, old: SegOutput, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        terms = list(terms_of(method, labels, output, old).values())
        wanted = [output.logits, output.features, output.class_tokens]
        return terms, list(torch.autograd.grad(torch.stack(terms).sum(), wanted))

    def permute(output: SegOutput, order: Tensor) -> SegOutput:
        leaf = {name: getattr(output, name)[:, order] for name in ("pixel_logits", "grid_logits")}
        leaf |= {"class_tokens": output.class_tokens[order], "features": output.features}
        return output._replace(**{name: x.detach().requires_grad_() for name, x in leaf.items()})

    terms, (logits, features, tokens) = differentiate(OUTPUT, OLD, LABELS)
    permuted = permute(OUTPUT, order), permute(OLD, order[:NUM_OLD]), new_id[LABELS]
    assert not torch.equal(permuted[2], LABELS)
    permuted_terms, gradients = differentiate(*permuted)
    torch.testing.assert_close(permuted_terms, terms)
    torch.testing.assert_close(gradients, [logits[:, order], features, tokens[order]])


@pytest.mark.parametrize("transfer", [True, False])
def test_new_classes_start_as_the_background_unless_weight_transfer_is_off(transfer: bool) -> None:
    options = DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=6)
    model = DeepLabV3([3], options)
    make_mbs(weight_transfer=transfer).add_classes(model, 2)
    tokens = model.classifier.class_tokens()
    assert tokens.shape[0] == 5
    assert bool((tokens[3:] == tokens[0]).all()) is transfer
