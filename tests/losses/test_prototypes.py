"""losses/prototypes.py: STAR's statistics, replayed features and discrimination, by hand and as released."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses.binary_cross_entropy import binary_cross_entropy
from losses.feature_distillation import feature_distillation
from losses.prototypes import (
    ClassStatistics,
    class_statistics,
    class_sums,
    discrimination,
    draw_features,
    labels_on_grid,
    shares_on_grid,
)
from tests.support.golden import load_method_golden

TWO = ClassStatistics(
    torch.tensor([[0.0, 1.0], [0.6, 0.8]]),
    torch.tensor([[0.0, 0.0], [0.1, 0.0]]),
    torch.tensor([1.0, 5.0]),
    torch.tensor([0.0, 1.0]),
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_method_golden("STAR")


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("length_noise", "expected"), [([[0.0, 1.0]], [3.5, 4.8]), ([[1.0]], [4.2, 4.8])])
def test_a_feature_is_its_direction_times_its_length_by_hand(
    length_noise: list[list[float]], expected: list[float]
) -> None:
    found = draw_features(TWO, torch.tensor([1]), torch.tensor([[1.0, -1.0]]), torch.tensor(length_noise))
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_statistics_by_hand() -> None:
    # Class 1 has (3, 4) and (0, 10), class 2 one cell, class 3 none; a cell of 255 counts nowhere.
    features = torch.tensor([[3.0, 4.0], [0.0, 10.0], [2.0, 0.0], [9.0, 9.0]]).T[None, :, :, None]
    cells = torch.tensor([1, 1, 2, 255])[None, :, None]
    sums = class_sums(features, cells, 4)
    assert sums[:, 0].tolist() == [0, 2, 1, 0]
    found = class_statistics(sums)
    mean = torch.tensor([0.3, 0.9])
    prototype = mean / mean.norm()
    torch.testing.assert_close(found.prototypes[1], prototype)
    spread = ((torch.tensor([[0.6, 0.8], [0.0, 1.0]]) - prototype) ** 2).mean(dim=0).sqrt()
    torch.testing.assert_close(found.spreads[1], spread)
    assert found.length_means.tolist() == [0, 7.5, 2, 0]
    torch.testing.assert_close(found.length_deviations, torch.tensor([0, 12.5**0.5, 0, 0]))
    assert all(float(x[3].abs().sum()) == 0 for x in found)


def test_sums_of_batches_are_those_of_all_images() -> None:
    generator = torch.Generator().manual_seed(0)
    features, cells = (
        torch.randn(4, 3, 5, 2, generator=generator),
        torch.randint(0, 3, (4, 5, 2), generator=generator),
    )
    parts = sum(class_sums(features[i : i + 2], cells[i : i + 2], 3) for i in (0, 2))
    assert isinstance(parts, Tensor)
    torch.testing.assert_close(parts, class_sums(features, cells, 3), rtol=1e-12, atol=1e-12)


def test_new_classes_are_pushed_from_the_nearest_old_prototype_by_hand() -> None:
    features = torch.tensor([2.0, 0.0])[None, :, None, None].requires_grad_()
    shares = torch.tensor([[1.0, 0.0]])[:, :, None, None]  # the second new class is not shown
    exists = torch.tensor([True, True])
    total, count = discrimination(features, shares, TWO.prototypes, exists)
    assert (total.item(), count.item()) == (pytest.approx(1.118034), 1)
    (gradient,) = torch.autograd.grad(total, features)
    assert gradient.isfinite().all()
    far, _ = discrimination(features, shares, TWO.prototypes, torch.tensor([True, False]))
    assert far.item() == pytest.approx(1 / 2**0.5)
    none, _ = discrimination(features, shares, TWO.prototypes, ~exists)
    assert none.item() == 0


def test_a_new_class_on_an_old_prototype_is_not_pushed_without_end() -> None:
    features = torch.tensor([0.0, 3.0])[None, :, None, None].requires_grad_()
    total, _ = discrimination(features, torch.ones(1, 1, 1, 1), TWO.prototypes, torch.tensor([True, True]))
    (gradient,) = torch.autograd.grad(total, features)
    assert total.item() == pytest.approx(10)
    assert gradient.tolist() == [[[[0.0]], [[0.0]]]]


def test_positives_have_their_weight_by_hand() -> None:
    for label, weight, expected in ((1, 4.0, 2.772589), (0, 4.0, 0.693147), (255, 4.0, 0.0)):
        labels = torch.tensor([[[label]]])
        total, _ = binary_cross_entropy(
            torch.zeros(1, 2, 1, 1), labels, 255, first_class=1, positive_weight=weight
        )
        assert total.item() == pytest.approx(expected, abs=1e-6)


def test_the_released_statistics_are_reproduced(golden: dict[str, Tensor]) -> None:
    cells = labels_on_grid(golden["labels"], golden["features"].shape[2:])
    assert torch.equal(cells, golden["labels"][:, 8::16, 8::16])
    sums = class_sums(golden["features"], cells, 6)[4:]
    found = class_statistics(sums)
    assert_close(found.prototypes, golden["stats.step0.prototypes"])
    assert_close(found.spreads, golden["stats.step0.noise"])
    assert_close(torch.stack([*found[2:]]), golden["stats.step0.norm_mean_and_std"])
    # From step 1 on it takes the spread of the k-th new class around the k-th old prototype.
    wrong = class_statistics(sums, golden["prev.prototypes"][:2])
    assert_close(golden["stats.step1.noise"][3:], wrong.spreads)
    assert_close(golden["stats.step1.prototypes"][3:], found.prototypes)
    assert (wrong.spreads - found.spreads).abs().max() > 0.1


def old_prediction(golden: dict[str, Tensor]) -> Tensor:
    """The released model has no row of the background: it is where no logit exceeds 0.5."""
    logits = golden["old_logits"]
    return torch.cat([torch.full_like(logits[:, :1], 0.5), logits], dim=1).argmax(dim=1)


def test_the_released_feature_term_is_reproduced(golden: dict[str, Tensor]) -> None:
    seen = old_prediction(golden)
    assert torch.equal(seen, golden["old_prediction"])
    features = golden["features"].requires_grad_()
    kept = shares_on_grid((golden["labels"] == 0) & (seen != 0), features.shape[2:])
    assert_close(kept, golden["pkd.region_grid"][:, 0])
    total, _ = feature_distillation(features, golden["old_features"], kept)
    loss = total / (kept.sum() * features.shape[1])
    assert_close(loss, golden["pkd.loss"])
    assert_close(torch.autograd.grad(loss, features)[0], golden["pkd.grad.features"])


def test_the_released_discrimination_of_the_batch_is_that_of_one_image_of_all_its_cells(
    golden: dict[str, Tensor],
) -> None:
    features = golden["features"].requires_grad_()
    shares = torch.stack([shares_on_grid(golden["labels"] == c, features.shape[2:]) for c in (4, 5)], dim=1)
    one, its_shares = (torch.cat([*x], dim=1)[None] for x in (features, shares))
    total, count = discrimination(one, its_shares, golden["prev.prototypes"], torch.ones(3, dtype=torch.bool))
    assert_close(total / count, golden["cont.loss"])
    assert_close(torch.autograd.grad(total / count, features)[0], golden["cont.grad.features"])


def test_the_released_classification_and_its_gradient_are_reproduced(golden: dict[str, Tensor]) -> None:
    labels, seen, counts = golden["labels"], old_prediction(golden), golden["replay.counts"].tolist()
    size = golden["features"].shape[2:]
    previous = ClassStatistics(
        golden["prev.prototypes"], golden["prev.noise"], *golden["prev.norm_mean_and_std"]
    )
    noise, length_noise = (
        torch.cat([golden[f"replay.normal.{2 * c + which}"][0, :, :, 0].T for c in range(3)])
        for which in (0, 1)
    )
    classes = torch.arange(3).repeat_interleave(torch.tensor(counts))
    replayed = draw_features(previous, classes, noise, length_noise)
    assert_close(replayed, golden["replay.features"][0, :, :, 0].T)
    is_background = (labels_on_grid(labels, size) == 0) & (labels_on_grid(seen, size) == 0)
    assert torch.equal(is_background, golden["replay.region_bg"])
    inputs = [golden[name].requires_grad_() for name in ("features", "classifier.weight", "classifier.bias")]
    features, weight, bias = inputs

    def classify(x: Tensor) -> Tensor:
        return F.conv2d(x, weight[3:, :, None, None], bias[3:])

    grid_logits = classify(features)
    logits = F.interpolate(grid_logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    # The release takes ignored pixels for negatives. Classes 4 and 5 are 1 and 2 here, background 0.
    own = torch.where((labels >= 4) & (labels != 255), labels - 3, 0)
    with_background = F.pad(logits, (0, 0, 0, 0, 1, 0))
    pixels, count = binary_cross_entropy(with_background, own, 255, first_class=1, positive_weight=4.0)
    fake = F.softplus(classify(replayed[:, :, None, None])).sum()
    background = F.softplus(grid_logits).sum(dim=1)[is_background].sum()
    num_cells, ratio = is_background.numel(), golden["mbce.extra_bg_ratio"]
    whole = num_cells + len(classes) + ratio * is_background.sum()
    loss = (pixels * num_cells / count + fake + ratio * background) / whole
    assert_close(loss, golden["mbce.sum"])
    for found, name in zip(torch.autograd.grad(loss, inputs), ("features", "weight", "bias"), strict=True):
        assert_close(found, golden[f"mbce.grad.{name}"])
