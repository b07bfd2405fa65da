"""losses/uncertainty_balance.py: UCB's weights, by hand and as released."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from losses.entropy_pseudo_label import normalised_entropy
from losses.uncertainty_balance import balanced_weights, class_weights, count_classes, uncertainty_weights
from tests.support.golden import load_method_golden


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    """Logits (1,K,1,N) of the pixels with these probabilities."""
    return torch.tensor(probabilities).log().T[None, :, None]


def logits_of_entropy(*entropies: float) -> Tensor:
    """Logits (1,2,1,N) of the pixels whose normalised entropy is this, by bisection."""
    found = []
    for entropy in entropies:
        low, high = 1e-9, 0.5
        for _ in range(100):
            p = (low + high) / 2
            value = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
            low, high = (p, high) if value < entropy else (low, p)
        found.append((p, 1 - p))
    return logits_of(*found)


def test_a_pixel_weighs_by_what_its_entropy_lacks_to_the_threshold_by_hand() -> None:
    logits = logits_of((0.5, 0.5), (0.9, 0.1), (0.5, 0.5))
    weights = uncertainty_weights(torch.tensor([[[0, 1, 2]]]), logits, 0.5)
    torch.testing.assert_close(weights, torch.tensor([[[0, 1.063972, math.e]]]), rtol=1e-5, atol=0)


def test_entropies_are_rescaled_by_the_extremes_of_a_batch_by_hand() -> None:
    logits = logits_of_entropy(0.2, 0.6, 1.0)
    weights = uncertainty_weights(torch.zeros(1, 1, 3, dtype=torch.int64), logits, 0.8, rescale=True)
    torch.testing.assert_close(weights, torch.tensor([[[math.e, 1.454991, 0]]]), rtol=1e-4, atol=1e-6)


def test_rare_classes_weigh_more_within_bounds_by_hand() -> None:
    weights = class_weights(torch.tensor([70.0, 10.0, 20.0]), num_old=2)
    torch.testing.assert_close(weights, torch.tensor([1, 1.414214, 0.75]))
    # A class not seen has the largest weight, and K_new > K_old turns the bounds round.
    weights = class_weights(torch.tensor([50.0, 25.0, 25.0, 0.0, 0.0, 0.0]), num_old=2)
    torch.testing.assert_close(weights, torch.tensor([1, 1, 1, *[2**0.5] * 3]))
    weights = class_weights(torch.tensor([0.0, 90.0, 10.0]), num_old=2, largest=1.25)
    torch.testing.assert_close(weights, torch.tensor([1, 0.8, 1.25]))


def test_a_step_that_has_seen_background_alone_has_finite_weights() -> None:
    weights = class_weights(torch.tensor([8.0, 0.0, 0.0]), num_old=2)
    torch.testing.assert_close(weights, torch.tensor([1, 2**0.5, 2**0.5]))


def test_ignored_pixels_count_as_background() -> None:
    labels = torch.tensor([[[0, 255, 2, 2]]])
    assert count_classes(labels, 3).tolist() == [2, 0, 2]
    assert count_classes(labels, 3, torch.tensor([[[1.0, 2.0, 3.0, 0.5]]])).tolist() == [3, 0, 3.5]


def released_histogram(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of every class as the released code counts them: K bins from the least to the largest label of a batch."""
    labels = labels.masked_fill(labels == 255, 0).double()
    return torch.histc(labels, num_classes, labels.min().item(), labels.max().item())


@pytest.mark.parametrize(("form", "threshold", "rescale"), [("plop", 0.8, True), ("ssul", 0.5, False)])
def test_the_released_weights_are_reproduced(form: str, threshold: float, rescale: bool) -> None:
    golden = load_method_golden("UCB")
    num_old, num_classes = int(golden["K_old"]), int(golden["K"])
    pixels = torch.zeros(num_classes, dtype=torch.float64)
    for batch in range(3):
        labels, logits = golden[f"pseudo_labels.{batch}"], golden[f"old_logits.{batch}"]
        torch.testing.assert_close(
            normalised_entropy(logits), golden[f"entropy.{batch}"], rtol=1e-5, atol=1e-6
        )
        sureness = uncertainty_weights(labels, logits, threshold, rescale)
        torch.testing.assert_close(sureness, golden[f"{form}.entropy_weight.{batch}"], rtol=1e-5, atol=1e-6)
        counted, released = count_classes(labels, num_classes), released_histogram(labels, num_classes)
        # Batch 2 shows neither background nor the last class, and the bins of the released code go astray.
        assert torch.equal(counted, released) is (batch < 2)
        pixels += released
        torch.testing.assert_close((pixels / pixels.sum()).float(), golden[f"{form}.histogram.{batch}"])
        of_classes = class_weights(pixels, num_old)
        found = balanced_weights(torch.ones_like(sureness), labels, of_classes)
        torch.testing.assert_close(found, golden[f"{form}.class_weight_map.{batch}"])
        weights = balanced_weights(sureness, labels, of_classes)
        expected = golden[f"{form}.weight.{batch}"]
        torch.testing.assert_close(weights / weights.mean(), expected, rtol=1e-5, atol=1e-6)
