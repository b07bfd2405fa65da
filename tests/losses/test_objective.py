"""losses/objective.py: the terms by hand and against the thin modules; switches, weights and counts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses.entropy_pseudo_label import EntropyPseudoLabel
from losses.feature_distillation import AdaptiveFeatureDistillation, reliability
from losses.objective import Objective
from losses.orthogonal import OrthogonalLoss
from losses.output_distillation import LabelGuidedOutputDistillation
from losses.pseudo_label import SelectivePseudoLabel
from models import SegOutput

NUM_OLD, NUM_NEW = 3, 2
EVERYTHING: dict[str, Any] = {
    "pseudo_label": SelectivePseudoLabel(0.5),
    "feature_distillation_weight": 0.7,
    "output_distillation_weight": 11.0,
    "orthogonal_weight": 0.3,
    "num_new": NUM_NEW,
}


def random_output(num_classes: int, seed: int) -> SegOutput:
    """What a model might return for 2 images of 8 x 8 on a grid of 4 x 4 with 6 features."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (2 * torch.randn(shape, generator=generator)).requires_grad_()

    return SegOutput(
        normal(2, num_classes, 8, 8),
        normal(2, num_classes, 4, 4),
        normal(2, 6, 4, 4),
        normal(num_classes, 6),
        None,
    )


def random_labels(seed: int = 0) -> Tensor:
    """Labels (2,8,8) of a step: background, new classes and 255."""
    choices = torch.tensor([0, 0, 0, 3, 4, 255])
    return choices[torch.randint(0, 6, (2, 8, 8), generator=torch.Generator().manual_seed(seed))]


OUTPUT, OLD, LABELS = random_output(NUM_OLD + NUM_NEW, 1), random_output(NUM_OLD, 2), random_labels()


def terms_of(objective: Objective, labels: Tensor = LABELS, share: float = 1.0) -> dict[str, Tensor]:
    """The terms of one batch that is the whole batch."""
    old = OLD if objective.needs_old_model else None
    targets = objective.prepare(labels, old)
    return objective(OUTPUT, old, labels, targets, targets.counts, share)


def part_of(output: SegOutput, index: int) -> SegOutput:
    """What belongs to one image of an output."""
    one = slice(index, index + 1)
    return output._replace(
        logits=output.logits[one], grid_logits=output.grid_logits[one], features=output.features[one]
    )


def slow_cross_entropy(kind: str, labels: Tensor) -> Tensor:
    """Cross-entropy (B,H,W) of every pixel in float64, class by class; 0 where the label is 255."""
    z = OUTPUT.logits.detach().double()
    p, s = z.softmax(dim=1), z.sigmoid()
    result = torch.zeros(labels.shape, dtype=torch.float64)
    for b, y, x in (labels != 255).nonzero().tolist():
        label = int(labels[b, y, x])
        if kind == "plain":
            result[b, y, x] = -p[b, label, y, x].log()
        elif kind == "unbiased":
            share = p[b, :NUM_OLD, y, x].sum() if label == 0 else p[b, label, y, x]
            result[b, y, x] = -share.log()
        else:
            asked = range(NUM_OLD if kind == "bce_new" else 0, NUM_OLD + NUM_NEW)
            scores = [s[b, c, y, x] if c == label else 1 - s[b, c, y, x] for c in asked]
            result[b, y, x] = -torch.stack(scores).log().sum()
    return result


def slow_distillation(kind: str) -> Tensor:
    """Output distillation in float64: over pixels a mean, over the old channels a mean, of sigmoids a sum."""
    z, old = OUTPUT.logits.detach().double(), OLD.logits.detach().double()
    if kind == "plain":
        return -(old.softmax(dim=1) * z[:, :NUM_OLD].log_softmax(dim=1)).mean()
    if kind == "unbiased":
        p = z.softmax(dim=1)
        joined = torch.cat([p[:, :1] + p[:, NUM_OLD:].sum(dim=1, keepdim=True), p[:, 1:NUM_OLD]], dim=1)
        return -(old.softmax(dim=1) * joined.log()).mean()
    q, s = old.sigmoid(), z[:, :NUM_OLD].sigmoid()
    q[:, 0][(LABELS >= NUM_OLD) & (LABELS != 255)] = 0
    return -(q * s.log() + (1 - q) * (1 - s).log()).sum(dim=1).mean()


@pytest.mark.parametrize("kind", ["plain", "unbiased", "bce", "bce_new"])
def test_every_cross_entropy_is_a_mean_over_labelled_pixels(kind: Any) -> None:
    expected = slow_cross_entropy(kind, LABELS).sum() / (LABELS != 255).sum()
    term = terms_of(Objective(cross_entropy=kind, num_new=NUM_NEW))["cross_entropy"]
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("cross_entropy", ["plain", "unbiased"])
def test_with_plops_factor_images_are_scaled_and_the_mean_is_over_all_pixels(cross_entropy: Any) -> None:
    pseudo_label = EntropyPseudoLabel(torch.tensor([0.3, 0.5, 0.6]))
    pseudo_labels = pseudo_label(LABELS, OLD.logits)
    is_background = LABELS == 0
    kept = (is_background & (pseudo_labels != 255)).sum(dim=(1, 2)) / is_background.sum(dim=(1, 2))
    assert 0 < float(kept.min()) < float(kept.max()) < 1
    expected = (kept.double()[:, None, None] * slow_cross_entropy(cross_entropy, pseudo_labels)).mean()
    arguments: dict[str, Any] = {"cross_entropy": cross_entropy, "num_new": NUM_NEW}
    objective = Objective(pseudo_label=pseudo_label, adaptive_factor=True, **arguments)
    torch.testing.assert_close(terms_of(objective)["cross_entropy"].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["plain", "unbiased", "binary"])
def test_every_output_distillation_is_a_mean_times_its_weight(kind: Any) -> None:
    objective = Objective(output_distillation_weight=7.0, output_distillation_kind=kind)
    term = terms_of(objective)["output_distillation"]
    torch.testing.assert_close(term.double(), 7 * slow_distillation(kind), rtol=1e-5, atol=0)


def test_plain_feature_distillation_is_the_mean_squared_difference() -> None:
    objective = Objective(feature_distillation_weight=3.0, feature_distillation_kind="plain")
    expected = 3 * F.mse_loss(OUTPUT.features, OLD.features)
    torch.testing.assert_close(terms_of(objective)["feature_distillation"], expected)


def test_decomposed_distillation_is_a_mean_over_cells_of_both_scores_of_the_old_classes() -> None:
    def scores(output: SegOutput) -> list[Tensor]:
        tokens = output.class_tokens.detach().double()[1:NUM_OLD]
        products = tokens[None, :, :, None, None] * output.features.detach().double()[:, None]
        return [products.clamp(min=0).sum(dim=2), products.clamp(max=0).sum(dim=2)]

    expected = sum(
        F.binary_cross_entropy_with_logits(new, old.sigmoid(), reduction="none").sum(dim=1).mean()
        for new, old in zip(scores(OUTPUT), scores(OLD), strict=True)
    )
    assert isinstance(expected, Tensor)
    term = terms_of(Objective(decomposed_distillation_weight=5.0))["decomposed_distillation"]
    torch.testing.assert_close(term.double(), 5 * expected, rtol=1e-5, atol=0)


def test_the_auxiliary_term_is_a_mean_over_cells() -> None:
    scores = torch.linspace(-3, 3, 2 * 16).view(2, 1, 4, 4)
    objective = Objective(auxiliary_weight=2.0)
    targets = objective.prepare(LABELS, None)
    output = OUTPUT._replace(auxiliary_logits=scores)
    term = objective(output, None, LABELS, targets, targets.counts)["auxiliary"]
    torch.testing.assert_close(term, -2 * (1 - scores.sigmoid()).log().mean())


def test_each_term_is_its_module_times_its_weight() -> None:
    terms = terms_of(Objective(**EVERYTHING))
    pseudo_labels = SelectivePseudoLabel(0.5)(LABELS, OLD.logits)
    weights = reliability(pseudo_labels, OLD.grid_logits)
    features = AdaptiveFeatureDistillation()(OUTPUT.features, OLD.features, weights)
    expected = {
        "cross_entropy": F.cross_entropy(OUTPUT.logits, pseudo_labels, ignore_index=255),
        "feature_distillation": 0.7 * features,
        "output_distillation": 11 * LabelGuidedOutputDistillation()(OUTPUT.logits, OLD.logits, LABELS),
        "orthogonal": 0.3 * OrthogonalLoss()(OUTPUT.class_tokens, NUM_NEW),
    }
    assert list(terms) == list(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])
        assert term > 0


def test_the_gradient_of_the_sum_reaches_the_model_and_not_the_old_one() -> None:
    leaves = OUTPUT.logits, OUTPUT.features, OUTPUT.class_tokens
    old = OLD.logits, OLD.grid_logits, OLD.features, OLD.class_tokens
    total = torch.stack(list(terms_of(Objective(**EVERYTHING)).values())).sum()
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
    objective = Objective(SelectivePseudoLabel(0.7), 1.0, 10.0, 3.0, 1.0, num_new=1)
    targets = objective.prepare(labels, old)
    assert targets.pseudo_labels.tolist() == [[[1, 2]]]
    assert targets.feature_weights is not None
    assert targets.feature_weights.tolist() == [[[1, 0]]]
    assert targets.counts.tolist() == [2, 1, 2, 1]
    terms = objective(output, old, labels, targets, targets.counts)
    log3 = torch.log(torch.tensor(3.0)).item()
    assert terms["cross_entropy"].item() == pytest.approx(log3)
    assert terms["feature_distillation"].item() == pytest.approx(10 * 9)
    assert terms["output_distillation"].item() == pytest.approx(3 * log3 / 3), "a mean over 3 channels"
    assert terms["orthogonal"].item() == pytest.approx((0.6 + 0.8) / 2 / 3)


def test_the_base_step_is_cross_entropy_only() -> None:
    terms = terms_of(Objective())
    assert list(terms) == ["cross_entropy"]
    torch.testing.assert_close(
        terms["cross_entropy"], F.cross_entropy(OUTPUT.logits, LABELS, ignore_index=255)
    )


@pytest.mark.parametrize("name", ["feature_distillation", "output_distillation", "orthogonal"])
def test_a_term_that_is_switched_off_is_absent_and_the_others_stay(name: str) -> None:
    everything = terms_of(Objective(**EVERYTHING))
    terms = terms_of(Objective(**(EVERYTHING | {f"{name}_weight": None})))
    assert set(everything) - set(terms) == {name}
    for other, term in terms.items():
        torch.testing.assert_close(term, everything[other])


def test_without_pseudo_labels_the_given_labels_steer_cross_entropy_and_features() -> None:
    terms = terms_of(Objective(**(EVERYTHING | {"pseudo_label": None})))
    weights = reliability(LABELS, OLD.grid_logits)
    features = AdaptiveFeatureDistillation()(OUTPUT.features, OLD.features, weights)
    torch.testing.assert_close(terms["feature_distillation"], 0.7 * features)
    torch.testing.assert_close(
        terms["cross_entropy"], F.cross_entropy(OUTPUT.logits, LABELS, ignore_index=255)
    )


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_the_pseudo_label_weight_counts_pseudo_labelled_pixels_less(weight: float) -> None:
    terms = terms_of(Objective(SelectivePseudoLabel(0.5), pseudo_label_weight=weight))
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
    ("options", "needed"),
    [
        ({}, False),
        ({"orthogonal_weight": 1.0, "num_new": 1}, False),
        ({"pseudo_label": SelectivePseudoLabel()}, True),
        ({"feature_distillation_weight": 1.0}, True),
        ({"output_distillation_weight": 1.0}, True),
    ],
)
def test_the_old_model_is_needed_by_three_of_the_four_terms(options: dict[str, Any], needed: bool) -> None:
    assert Objective(**options).needs_old_model is needed


def test_a_batch_of_ignored_pixels_is_finite_and_has_no_cross_entropy_and_no_features() -> None:
    labels = torch.full_like(LABELS, 255)
    terms = terms_of(Objective(**EVERYTHING), labels)
    assert terms["cross_entropy"].item() == 0
    assert terms["feature_distillation"].item() == 0
    total = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(total, [OUTPUT.logits, OUTPUT.features, OUTPUT.class_tokens])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1].abs().sum() == 0
    assert (
        torch.autograd.grad(terms_of(Objective(), labels)["cross_entropy"], OUTPUT.logits)[0].abs().sum() == 0
    )


def test_counts_are_labelled_pixels_distilled_cells_pixels_and_images_and_add_up() -> None:
    objective = Objective(**EVERYTHING)
    targets = objective.prepare(LABELS, OLD)
    assert targets.feature_weights is not None
    num_labelled, num_cells = (targets.pseudo_labels != 255).sum(), (targets.feature_weights > 0).sum()
    assert targets.counts.tolist() == [num_labelled.item(), num_cells.item(), 2 * 8 * 8, 2]
    assert targets.counts.dtype == torch.float64
    halves = [objective.prepare(LABELS[i : i + 1], part_of(OLD, i)).counts for i in range(2)]
    assert torch.equal(halves[0] + halves[1], targets.counts)


def test_terms_of_micro_batches_add_up_to_those_of_the_batch() -> None:
    objective = Objective(**EVERYTHING, pseudo_label_weight=0.5)
    labels = LABELS.clone()
    labels[0, 1:] = 255  # one image has next to nothing to learn from
    whole = terms_of(objective, labels)
    counts = objective.prepare(labels, OLD).counts
    parts = []
    for i in range(2):
        old, own = part_of(OLD, i), labels[i : i + 1]
        parts.append(objective(part_of(OUTPUT, i), old, own, objective.prepare(own, old), counts, share=0.5))
    for name, term in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], term)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_finite_float32_terms(dtype: torch.dtype) -> None:
    def cast(output: SegOutput) -> SegOutput:
        logits, grid_logits, features, tokens = (
            (30 * x).to(dtype)
            for x in (output.logits, output.grid_logits, output.features, output.class_tokens)
        )
        return SegOutput(logits, grid_logits, features, tokens, None)

    objective = Objective(**EVERYTHING)
    targets = objective.prepare(LABELS, cast(OLD))
    for term in objective(cast(OUTPUT), cast(OLD), LABELS, targets, targets.counts).values():
        assert term.dtype == torch.float32
        assert term.isfinite()


def test_class_embeddings_add_their_plain_mean_over_old_classes_and_all_images_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(2, NUM_OLD + NUM_NEW, 6, generator=generator)
    old_embeddings = torch.randn(2, NUM_OLD, 6, generator=generator)
    objective = Objective(feature_distillation_weight=0.7)
    expected = 0.7 * F.mse_loss(embeddings[:, :NUM_OLD], old_embeddings)
    whole = objective.prepare(LABELS, OLD).counts
    parts = []
    for index in (0, 1):
        one = slice(index, index + 1)
        output = part_of(OUTPUT, index)._replace(class_embeddings=embeddings[one])
        old = part_of(OLD, index)._replace(class_embeddings=old_embeddings[one])
        targets = objective.prepare(LABELS[one], old)
        parts.append(objective(output, old, LABELS[one], targets, whole)["embedding_distillation"])
    torch.testing.assert_close(parts[0] + parts[1], expected)


def test_another_order_of_the_classes_gives_the_same_terms_and_the_permuted_gradient() -> None:
    # Old classes 1 and 2 change places, and new classes 3 and 4.
    order = torch.tensor([0, 2, 1, 4, 3])
    new_id = torch.arange(256)
    new_id[order] = torch.arange(5)
    objective = Objective(**EVERYTHING)

    def differentiate(output: SegOutput, old: SegOutput, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        targets = objective.prepare(labels, old)
        terms = list(objective(output, old, labels, targets, targets.counts).values())
        wanted = [output.logits, output.features, output.class_tokens]
        return terms, list(torch.autograd.grad(torch.stack(terms).sum(), wanted))

    def permute(output: SegOutput, order: Tensor) -> SegOutput:
        leaf = {name: getattr(output, name)[:, order] for name in ("logits", "grid_logits")}
        leaf |= {"class_tokens": output.class_tokens[order], "features": output.features}
        return output._replace(**{name: x.detach().requires_grad_() for name, x in leaf.items()})

    terms, (logits, features, tokens) = differentiate(OUTPUT, OLD, LABELS)
    permuted = permute(OUTPUT, order), permute(OLD, order[:NUM_OLD]), new_id[LABELS]
    assert not torch.equal(permuted[2], LABELS)
    permuted_terms, gradients = differentiate(*permuted)
    torch.testing.assert_close(permuted_terms, terms)
    torch.testing.assert_close(gradients, [logits[:, order], features, tokens[order]])
