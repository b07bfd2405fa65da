"""Adaptive feature distillation: features are held where the old model is reliable, and nowhere else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.feature_distillation import (
    AdaptiveFeatureDistillation,
    embedding_distillation,
    feature_distillation,
    reliability,
)
from losses.pseudo_label import SelectivePseudoLabel
from tests.support.golden import assert_matches_golden, each_golden_case, load_golden


def random_features(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return features and old features (2,3,4,5), and weights (2,4,5): a third 0, a third 1, the rest between."""
    generator = torch.Generator().manual_seed(seed)
    features, old_features = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64).to(dtype)
    weights = (3 * torch.rand(2, 4, 5, generator=generator, dtype=torch.float64) - 1).clamp(0, 1)
    return features, old_features, weights


def random_old_view(seed: int, num_old: int, num_new: int) -> tuple[Tensor, Tensor]:
    """Return pseudo-labels (2,7,9) over every kind of id, and float64 old logits (2,num_old,3,4)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([*range(num_old + num_new), 255])
    pseudo_labels = ids[torch.randint(len(ids), (2, 7, 9), generator=generator)]
    return pseudo_labels, 2 * torch.randn(2, num_old, 3, 4, generator=generator, dtype=torch.float64)


def slow_reliability(pseudo_labels: Tensor, old_grid_logits: Tensor, ignore_index: int) -> Tensor:
    """One cell at a time; nearest takes the source pixel floor(i·H/h)."""
    batch, num_old, height, width = old_grid_logits.shape
    weights = torch.zeros(batch, height, width, dtype=torch.float64)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                row, column = i * pseudo_labels.shape[1] // height, j * pseudo_labels.shape[2] // width
                label = int(pseudo_labels[b, row, column])
                exponentials = [math.exp(value) for value in old_grid_logits[b, :, i, j].tolist()]
                if label == ignore_index:
                    continue
                if label == 0:
                    weights[b, i, j] = exponentials[0] / sum(exponentials)
                elif label < num_old:
                    weights[b, i, j] = 1
    return weights


def slow_feature_distillation(features: Tensor, old_features: Tensor, weights: Tensor) -> float:
    """Σ w·(f − f°)² / #(elements with w > 0), element by element."""
    total, count = 0.0, 0
    for b, c, i, j in torch.ones_like(features).nonzero().tolist():
        weight = float(weights[b, i, j])
        total += weight * float(features[b, c, i, j] - old_features[b, c, i, j]) ** 2
        count += weight > 0
    return total / count if count else 0.0


def test_worked_reliability() -> None:
    # Grid 2x2 over labels 4x4: nearest takes pixels (0,0) (0,2) / (2,0) (2,2); the x are never looked at.
    x = 1
    pseudo_labels = torch.tensor([[[0, x, 2, x], [x, x, x, x], [3, x, 255, x], [x, x, x, x]]])
    p_0 = torch.tensor([[0.4, 0.9], [0.9, 0.9]])
    # K_old = 3, so id 2 is old and id 3 is new. The old model's own argmax plays no part.
    grid_logits = torch.stack([p_0, (1 - p_0) / 2, (1 - p_0) / 2]).log()[None]
    # background -> p_0 = 0.4; old class -> 1; new class -> 0; ignored -> 0
    torch.testing.assert_close(
        reliability(pseudo_labels, grid_logits), torch.tensor([[[0.4, 1.0], [0.0, 0.0]]])
    )


def test_worked_loss() -> None:
    # One image, two channels, three cells. f − f° = (1,2), (2,0), (5,5); w = 1, 0.5, 0.
    # Σ w·(f − f°)² = 1·(1 + 4) + 0.5·(4 + 0) + 0 = 7; two cells of two channels have w > 0: 7 / 4 = 1.75.
    features = torch.tensor([[[[2.0, 3.0, 6.0]], [[3.0, 1.0, 6.0]]]])
    old_features = torch.ones(1, 2, 1, 3)
    weights = torch.tensor([[[1.0, 0.5, 0.0]]])
    total, count = feature_distillation(features, old_features, weights)
    assert (total.item(), count.item()) == (7.0, 4)
    assert AdaptiveFeatureDistillation()(features, old_features, weights).item() == 1.75


@each_golden_case
def test_reliability_equals_the_released_implementation(case: int) -> None:
    golden = load_golden(case)
    weights = reliability(golden["out_pseudo_labels"].long(), golden["in_masks_prev"])
    assert_matches_golden(weights, golden["out_reliability"])


@each_golden_case
def test_loss_and_gradient_equal_the_released_implementation(case: int) -> None:
    golden = load_golden(case)
    features = golden["in_patches"].requires_grad_()
    pseudo_labels = SelectivePseudoLabel()(golden["in_labels"], golden["in_prev"])
    weights = reliability(pseudo_labels, golden["in_masks_prev"])
    loss = AdaptiveFeatureDistillation()(features, golden["in_patches_prev"], weights)
    loss.backward()
    assert_matches_golden(loss, golden["out_afd"])
    assert features.grad is not None
    assert_matches_golden(features.grad, golden["out_grad_afd"])


# 2 is an id among the old classes: where it means 'ignore', it weighs nothing.
@pytest.mark.parametrize("ignore_index", [255, 200, -100, 2])
def test_reliability_equals_the_slow_form(ignore_index: int) -> None:
    pseudo_labels, grid_logits = random_old_view(seed=0, num_old=4, num_new=2)
    pseudo_labels[pseudo_labels == 255] = ignore_index
    expected = slow_reliability(pseudo_labels, grid_logits, ignore_index)
    actual = reliability(pseudo_labels, grid_logits, ignore_index)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


def test_loss_equals_the_slow_form() -> None:
    features, old_features, weights = random_features(seed=0)
    loss = AdaptiveFeatureDistillation()(features, old_features, weights)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_feature_distillation(features, old_features, weights), rel=1e-10)


def test_totals_and_counts_of_two_parts_add_up_to_those_of_the_batch() -> None:
    batch = random_features(seed=1)
    total, count = feature_distillation(*batch)
    parts = [feature_distillation(*(x[i : i + 1] for x in batch)) for i in range(2)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], total, rtol=1e-12, atol=0)
    assert parts[0][1] + parts[1][1] == count
    assert parts[0][1] != parts[1][1]  # a mean of the parts' means would therefore differ


def test_gradient_is_that_of_the_definition_and_reaches_the_new_features_only() -> None:
    features, old_features, weights = random_features(seed=2)
    for tensor in (features, old_features, weights):
        tensor.requires_grad_()
    AdaptiveFeatureDistillation()(features, old_features, weights).backward()
    count = 3 * int((weights > 0).sum())
    expected = (2 * weights[:, None] * (features - old_features) / count).detach()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, expected, rtol=1e-10, atol=0)
    assert old_features.grad is None
    assert weights.grad is None


def test_reliability_carries_no_gradient_to_the_old_model() -> None:
    pseudo_labels, grid_logits = random_old_view(seed=3, num_old=3, num_new=1)
    assert not reliability(pseudo_labels, grid_logits.requires_grad_()).requires_grad


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3, 4, 5)])
def test_an_empty_selection_gives_a_connected_zero(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, requires_grad=True)
    weights = torch.zeros(shape[0], *shape[2:])
    loss = AdaptiveFeatureDistillation()(features, torch.randn(shape), weights)
    assert loss.item() == 0
    loss.backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros(shape))


@pytest.mark.parametrize("label", [255, 3], ids=["ignored", "new"])
def test_a_batch_of_ignored_or_new_pixels_distils_nothing(label: int) -> None:
    pseudo_labels = torch.full((2, 8, 8), label)
    weights = reliability(pseudo_labels, torch.randn(2, 3, 4, 4))
    assert torch.equal(weights, torch.zeros(2, 4, 4))
    assert (
        AdaptiveFeatureDistillation()(torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4), weights).item() == 0
    )


def test_confident_background_everywhere_weighs_its_probability() -> None:
    grid_logits = torch.tensor([math.log(8), 0.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)  # p_0 = 8/10
    weights = reliability(torch.zeros(2, 8, 8, dtype=torch.long), grid_logits)
    torch.testing.assert_close(weights, torch.full((2, 4, 4), 0.8))
    # f − f° = 2 everywhere: 0.8 · 4
    loss = AdaptiveFeatureDistillation()(torch.full((2, 5, 4, 4), 3.0), torch.ones(2, 5, 4, 4), weights)
    assert loss.item() == pytest.approx(3.2, rel=1e-6)


def test_equal_features_cost_nothing() -> None:
    features, _, weights = random_features(seed=4)
    assert AdaptiveFeatureDistillation()(features, features.clone(), weights).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    # 2e4² = 4e8, and the sum of 4096 of them, lie far beyond float16's 65504.
    features = torch.full((1, 4, 32, 32), 1e4, dtype=dtype, requires_grad=True)
    old_features = torch.full((1, 4, 32, 32), -1e4, dtype=dtype)
    loss = AdaptiveFeatureDistillation()(features, old_features, torch.ones(1, 32, 32))
    loss.backward()
    difference = 2 * features[0, 0, 0, 0].item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(difference**2, rel=1e-6)
    assert features.grad is not None
    assert features.grad.dtype == dtype
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_slow_form_of_the_rounded_features(dtype: torch.dtype) -> None:
    features, old_features, weights = random_features(seed=5, dtype=dtype)
    loss = AdaptiveFeatureDistillation()(features, old_features, weights.float())
    expected = slow_feature_distillation(features.double(), old_features.double(), weights.float())
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reliability_of_large_half_precision_logits_is_float32_and_finite(dtype: torch.dtype) -> None:
    pseudo_labels = torch.tensor([[[0, 0, 255]]])
    grid_logits = torch.tensor([[[[6e4, -6e4, 0.0]], [[-6e4, 6e4, 0.0]]]], dtype=dtype)
    weights = reliability(pseudo_labels, grid_logits)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [[[1.0, 0.0, 0.0]]]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), num_old=st.integers(1, 6), num_new=st.integers(0, 3))
def test_reliability_lies_between_0_and_1_and_is_the_slow_form(seed: int, num_old: int, num_new: int) -> None:
    pseudo_labels, grid_logits = random_old_view(seed, num_old, num_new)
    weights = reliability(pseudo_labels, grid_logits)
    assert ((weights >= 0) & (weights <= 1)).all()
    torch.testing.assert_close(
        weights, slow_reliability(pseudo_labels, grid_logits, 255), rtol=1e-10, atol=1e-15
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), factor=st.floats(-100, 100))
def test_loss_is_not_negative_and_grows_with_the_square_of_the_difference(seed: int, factor: float) -> None:
    features, old_features, weights = random_features(seed)
    loss = AdaptiveFeatureDistillation()(features, old_features, weights).item()
    scaled = AdaptiveFeatureDistillation()(factor * features, factor * old_features, weights).item()
    assert loss >= 0
    assert scaled == pytest.approx(factor**2 * loss, rel=1e-9, abs=1e-12)


@each_golden_case
def test_embedding_distillation_is_that_of_the_reference(case: int) -> None:
    golden = load_golden(case)
    total, count = embedding_distillation(golden["in_cls_feat"], golden["in_cls_feat_prev"])
    assert_matches_golden(total / count, golden["out_token_fd"])


def test_embedding_distillation_is_the_plain_mean_over_the_old_classes() -> None:
    embeddings = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [9.0, 9.0]]], requires_grad=True)
    old_embeddings = torch.tensor([[[0.0, 2.0], [0.0, -2.0]]], requires_grad=True)
    total, count = embedding_distillation(embeddings, old_embeddings)
    assert total.item() == 1 + 9
    assert count == 4
    total.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.tolist() == [[[2, 0], [0, 6], [0, 0]]]  # none to the new class
    assert old_embeddings.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embedding_distillation_sums_half_precision_in_float32(dtype: torch.dtype) -> None:
    embeddings, old_embeddings = torch.full((2, 3, 4), 300.0, dtype=dtype), torch.zeros(2, 2, 4, dtype=dtype)
    total, count = embedding_distillation(embeddings, old_embeddings)
    assert total.dtype == torch.float32
    assert total.item() == 300**2 * count  # float16 ends at 65504
