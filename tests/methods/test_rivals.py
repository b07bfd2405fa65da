"""LwF, ILT, MiB, PLOP, SSUL and DKD: every term against an independent float64 form of the paper's formula."""

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.entropy_pseudo_label import entropy_pseudo_labels
from losses.local_pod import join_new_to_background, local_pod
from methods import METHODS, Output
from methods.base import Looks
from methods.dkd import DKD
from methods.plop import PLOP
from methods.ssul import SSUL
from models import DeepLabV3, Segmenter, SegOutput
from tests.support.outputs import (
    LABELS,
    NUM_NEW,
    NUM_OLD,
    OLD,
    OUTPUT,
    make_method,
    slow_cross_entropy,
    slow_distillation,
    terms_of,
)

NUM_LABELLED = (LABELS != 255).sum()
THRESHOLDS = torch.tensor([0.3, 0.5, 0.6])


def with_stages(output: SegOutput, seed: int) -> SegOutput:
    """An output with two more feature maps."""
    generator = torch.Generator().manual_seed(seed)
    stages = torch.randn(2, 3, 8, 8, generator=generator), torch.randn(2, 5, 4, 4, generator=generator)
    return output._replace(stages=stages)


def make_plop(**options: Any) -> PLOP:
    method = make_method(PLOP, **options)
    method.state["thresholds"] = THRESHOLDS
    assert isinstance(method, PLOP)
    return method


def make_dkd(**options: Any) -> DKD:
    method = make_method(DKD, **options)
    torch.manual_seed(0)
    method.modules = nn.ModuleDict(method.parts(6))
    assert isinstance(method, DKD)
    return method


@pytest.mark.parametrize(("name", "kind"), [("lwf", "softmax"), ("ilt", "softmax"), ("mib", "unbiased")])
def test_cross_entropy_is_a_mean_over_all_pixels(name: str, kind: str) -> None:
    expected = slow_cross_entropy(kind, LABELS).mean()
    term = terms_of(make_method(METHODS[name]))["cross_entropy"]
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=0)


def test_old_classes_that_memory_labels_are_background_to_mib() -> None:
    remembered = torch.where(LABELS == 0, torch.arange(8) % NUM_OLD, LABELS)
    of_memory, as_given = (
        terms_of(make_method(METHODS["mib"]), y)["cross_entropy"] for y in (remembered, LABELS)
    )
    assert torch.equal(of_memory, as_given)


@pytest.mark.parametrize(("name", "kind"), [("lwf", "softmax"), ("ilt", "softmax"), ("mib", "unbiased")])
def test_output_distillation_is_a_mean_over_pixels_and_old_classes_times_its_weight(
    name: str, kind: str
) -> None:
    term = terms_of(make_method(METHODS[name], output_weight=7.0))["output_distillation"]
    torch.testing.assert_close(term.double(), 7 * slow_distillation(kind), rtol=1e-5, atol=0)


def test_ilt_keeps_the_last_stage_or_the_features_by_their_mean_squared_difference() -> None:
    assert OUTPUT.backbone is not None
    assert OLD.backbone is not None
    for features, new, old in (
        ("last_stage", OUTPUT.backbone, OLD.backbone),
        ("before_classifier", OUTPUT.features, OLD.features),
    ):
        method = make_method(METHODS["ilt"], feature_weight=3.0, features=features)
        torch.testing.assert_close(terms_of(method)["feature_distillation"], 3 * F.mse_loss(new, old))


def test_plop_scales_images_by_the_share_that_got_a_label_and_takes_the_mean_over_all_pixels() -> None:
    pseudo_labels = entropy_pseudo_labels(LABELS, OLD.logits, THRESHOLDS, 255)
    is_background = LABELS == 0
    kept = (is_background & (pseudo_labels != 255)).sum(dim=(1, 2)) / is_background.sum(dim=(1, 2))
    assert 0 < float(kept.min()) < float(kept.max()) < 1
    loss = slow_cross_entropy("softmax", pseudo_labels)
    output, old = with_stages(OUTPUT, 1), with_stages(OLD, 2)
    term = terms_of(make_plop(), output=output, old=old)["cross_entropy"]
    torch.testing.assert_close(term.double(), (kept.double()[:, None, None] * loss).mean(), rtol=1e-5, atol=0)
    term = terms_of(make_plop(adaptive_factor=False), output=output, old=old)["cross_entropy"]
    torch.testing.assert_close(term.double(), loss.mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changed", "num_maps"), [("stage_weight", 2), ("feature_weight", 1), ("logit_weight", 1)]
)
def test_local_pod_is_the_mean_over_stages_features_and_logits_each_with_its_weight(
    changed: str, num_maps: int
) -> None:
    weights = {"stage_weight": 0.0, "feature_weight": 0.0, "logit_weight": 0.0, changed: 3.0}
    output, old = with_stages(OUTPUT, 1), with_stages(OLD, 2)
    term = terms_of(make_plop(**weights), output=output, old=old)["local_pod"]
    joined = join_new_to_background(output.grid_logits, NUM_OLD)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {
        "stage_weight": list(zip(output.stages, old.stages, strict=True)),
        "feature_weight": [(output.features, old.features)],
        "logit_weight": [(joined, old.grid_logits)],
    }
    distances = [local_pod(new, kept)[0] / len(LABELS) for new, kept in pairs[changed]]
    assert len(distances) == num_maps
    scale = math.sqrt((NUM_OLD + NUM_NEW) / NUM_NEW)
    torch.testing.assert_close(term, 3.0 * scale * torch.stack(distances).sum() / 4)


class Looked:
    """Looks at two batches, on one rank of two that see the same."""

    device = torch.device("cpu")

    def __iter__(self) -> "object":
        images = torch.zeros(2, 3, 8, 8)
        return iter([(images, LABELS, OLD), (images, LABELS.flip(0), OLD)])

    def sum(self, x: Tensor) -> Tensor:
        return 2 * x


def test_plop_measures_the_median_entropy_of_every_class_over_the_images_of_the_step() -> None:
    method = make_method(PLOP, thresholds="paper", threshold=0.2)
    model = DeepLabV3([3], DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=6))
    method.begin_step(model, cast(Looks, Looked()))
    logits = OLD.logits.detach()
    p = logits.double().softmax(dim=1)
    entropy, seen = -(p * p.log()).sum(dim=1) / math.log(3), logits.argmax(dim=1)
    for c in range(3):
        picked = [entropy[(seen == c) & (labels == 0)] for labels in (LABELS, LABELS.flip(0))]
        median = max(0.2, float(torch.cat(picked).quantile(0.5, interpolation="lower")))
        assert float(method.state["thresholds"][c]) == pytest.approx(median, abs=1e-3)


def test_ssul_asks_every_sigmoid_of_pseudo_labels_that_are_sure() -> None:
    method = make_method(SSUL, threshold=0.9)
    scores = OLD.logits.detach().sigmoid()
    expected = LABELS.clone()
    for b, y, x in (LABELS == 0).nonzero().tolist():
        best = int(scores[b, :, y, x].argmax())
        if best and scores[b, best, y, x] >= 0.9:
            expected[b, y, x] = best
    assert 5 < int((expected != LABELS).sum()) < int((LABELS == 0).sum())
    assert torch.equal(method.targets(LABELS, cast(Output, OLD)).pseudo_labels, expected)
    loss = slow_cross_entropy("sigmoids", expected).sum() / NUM_LABELLED
    torch.testing.assert_close(terms_of(method)["cross_entropy"].double(), loss, rtol=1e-5, atol=0)


def test_dkd_asks_the_sigmoids_of_new_classes_only() -> None:
    expected = slow_cross_entropy("new sigmoids", LABELS).sum() / NUM_LABELLED
    torch.testing.assert_close(terms_of(make_dkd())["cross_entropy"].double(), expected, rtol=1e-5, atol=0)


def test_void_shows_no_new_class_where_the_options_of_dkd_say_so() -> None:
    void = torch.where(LABELS == 255, 0, LABELS)
    expected = slow_cross_entropy("new sigmoids", void).mean()
    term = terms_of(make_dkd(void_is_negative=True))["cross_entropy"]
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=0)


def test_dkd_has_no_classifier_of_the_background() -> None:
    method = make_dkd()
    model = DeepLabV3([3], DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=6))
    old_classes = model.classifier.class_tokens().detach()[1:].clone()
    method.begin_step(model, cast(Looks, None))
    tokens = model.classifier.class_tokens().detach()
    assert not tokens[0].any()
    assert torch.equal(tokens[1:], old_classes)
    logits = model.eval()(torch.rand(2, 3, 32, 32)).grid_logits
    assert not logits[:, 0].any()
    scores = logits[:, 1:].sigmoid()
    expected = torch.where(scores.max(dim=1).values > 0.5, scores.argmax(dim=1) + 1, 0)
    assert torch.equal(logits.argmax(dim=1), expected)
    loss = torch.stack(list(terms_of(method).values())).sum()
    (gradient,) = torch.autograd.grad(loss, OUTPUT.logits)
    assert not gradient[:, 0].any(), "no term asks it, so that it stays zero"


def test_dkd_distils_old_sigmoids_as_a_mean_over_pixels_of_sums_over_classes() -> None:
    term = terms_of(make_dkd(output_weight=7.0))["output_distillation"]
    torch.testing.assert_close(term.double(), 7 * slow_distillation("sigmoids"), rtol=1e-5, atol=0)


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
    term = terms_of(make_dkd(decomposed_weight=5.0))["decomposed_distillation"]
    torch.testing.assert_close(term.double(), 5 * expected, rtol=1e-5, atol=0)


def test_the_auxiliary_classifier_learns_that_no_pixel_shows_a_class_to_come_and_the_features_nothing() -> (
    None
):
    method = make_dkd(auxiliary_weight=2.0)
    term = terms_of(method)["auxiliary"]
    row = method.modules["auxiliary"]
    scores = torch.einsum("bdhw,d->bhw", OUTPUT.features, row.get_parameter("weight").flatten())
    scores = F.interpolate((scores + row.get_parameter("bias"))[:, None], (8, 8), mode="bilinear")
    torch.testing.assert_close(term, -2 * (1 - scores.sigmoid()).log().mean())
    (features,) = torch.autograd.grad(term, OUTPUT.features, retain_graph=True, allow_unused=True)
    assert features is None
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(term, list(row.parameters())))


def test_the_auxiliary_term_of_half_precision_is_finite() -> None:
    method = make_dkd()
    with torch.no_grad():
        method.modules["auxiliary"].get_parameter("weight").fill_(1)
    output = OUTPUT._replace(features=torch.full((2, 6, 4, 4), 6e4, dtype=torch.float16))
    term = method.auxiliary_term(cast(Output, output)).total
    assert term.dtype == torch.float32
    torch.testing.assert_close(term, torch.tensor(2 * 64 * 6 * 6e4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("trained", [True, False])
def test_new_classes_of_dkd_start_as_the_auxiliary_classifier_an_untrained_one_as_the_background(
    trained: bool,
) -> None:
    method = make_dkd()
    method.parts_are_trained = trained
    auxiliary = method.modules["auxiliary"]
    before = auxiliary.get_parameter("weight").detach().clone().flatten()
    model = DeepLabV3([3], DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=6))
    method.add_classes(model, 2)
    tokens = model.classifier.class_tokens().detach()
    expected = before if trained else tokens[0]
    assert torch.equal(tokens[3:], expected.expand(2, 6))
    assert torch.equal(auxiliary.get_parameter("weight").detach().flatten(), expected)


def test_the_last_stage_of_a_segmenter_are_the_patches_of_its_vit() -> None:
    options = Segmenter.Options(backbone="test_vit", pretrained=False, channels=8, num_heads=2, patch_size=8)
    model = Segmenter([3], options, image_size=32).eval()
    images = torch.rand(2, 3, 32, 32)
    output = model(images)
    assert torch.equal(output.backbone, model.named_maps(images, ["backbone"])["backbone"][0])
    terms = terms_of(make_method(METHODS["ilt"]), torch.zeros(2, 32, 32).long(), output, output)
    assert list(terms) == ["cross_entropy", "feature_distillation", "output_distillation"]
