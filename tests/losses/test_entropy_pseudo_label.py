"""losses/entropy_pseudo_label.py: entropies, medians, pseudo-labels and the factor of an image, by hand."""

import math

import pytest
import torch
from torch import Tensor

from losses.entropy_pseudo_label import (
    NUM_BINS,
    adaptive_factor,
    entropy_histogram,
    entropy_pseudo_labels,
    median_thresholds,
    normalised_entropy,
    released_scale,
    released_thresholds,
)


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    """Old logits (1,K,1,W) of a row of pixels."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T[None, :, None]


SURE_OF_1, UNSURE_OF_1 = (0.05, 0.9, 0.05), (0.2, 0.5, 0.3)
SURE_OF_0, NOTHING = (0.98, 0.01, 0.01), (1 / 3, 1 / 3, 1 / 3)


def entropy(probabilities: tuple[float, ...]) -> float:
    return -sum(p * math.log(p) for p in probabilities) / math.log(len(probabilities))


def test_entropy_is_that_of_the_softmax_over_its_largest_value() -> None:
    found = normalised_entropy(logits_of(SURE_OF_1, UNSURE_OF_1, NOTHING))[0, 0].tolist()
    assert found == pytest.approx([entropy(SURE_OF_1), entropy(UNSURE_OF_1), 1])


def test_background_becomes_what_the_old_model_is_sure_of_and_is_ignored_elsewhere() -> None:
    old_logits = logits_of(SURE_OF_1, UNSURE_OF_1, SURE_OF_0, NOTHING, SURE_OF_1, SURE_OF_1)
    labels = torch.tensor([[[0, 0, 0, 0, 3, 255]]])
    thresholds = torch.tensor([0.5, 0.5, 0.5])
    found = entropy_pseudo_labels(labels, old_logits, thresholds, 255)
    assert found.tolist() == [[[1, 255, 0, 255, 3, 255]]]
    of_another_class = torch.tensor([0.5, 0.99, 0.0])
    assert entropy_pseudo_labels(labels, old_logits, of_another_class, 255)[0, 0, 1] == 1


def test_the_factor_is_the_share_of_each_images_background_that_got_a_label_0_without_background() -> None:
    labels = torch.tensor([[[0, 0, 0, 0, 3, 255]], [[0, 3, 3, 3, 3, 3]], [[3, 3, 3, 4, 4, 255]]])
    pseudo_labels = torch.tensor([[[1, 255, 0, 2, 3, 255]], [[255, 3, 3, 3, 3, 3]], [[3, 3, 3, 4, 4, 255]]])
    assert adaptive_factor(labels, pseudo_labels, 255).tolist() == [pytest.approx(0.75), 0, 0]


@pytest.mark.parametrize("num_pixels", [1, 2, 7, 500])
def test_thresholds_are_the_medians_of_background_pixels_by_class(num_pixels: int) -> None:
    generator = torch.Generator().manual_seed(num_pixels)
    old_logits = 2 * torch.randn(2, 3, 4, num_pixels, generator=generator)
    old_logits[:, 2] = -9  # a class that is never the likeliest
    labels = torch.tensor([0, 0, 3, 255])[torch.randint(0, 4, (2, 4, num_pixels), generator=generator)]
    parts = [entropy_histogram(labels[i : i + 1], old_logits[i : i + 1]) for i in range(2)]
    thresholds = median_thresholds(parts[0] + parts[1], minimum=0.001)
    for c in (0, 1):
        is_class = (labels == 0) & (old_logits.argmax(dim=1) == c)
        median = float(normalised_entropy(old_logits)[is_class].median())
        assert median <= float(thresholds[c]) <= median + 1.001 / NUM_BINS
    assert thresholds[2] == 1


def test_a_threshold_is_never_below_the_minimum() -> None:
    histogram = torch.zeros(2, NUM_BINS, dtype=torch.int64)
    histogram[:, 0] = 5
    assert median_thresholds(histogram, minimum=0.25).tolist() == [0.25, 0.25]


def test_thresholds_of_the_released_code_by_hand() -> None:
    histogram = torch.zeros(5, 100, dtype=torch.int64)
    histogram[0, 0] = 10  # half of the first bin
    histogram[1, :2] = torch.tensor([1, 9])  # all 5 of the half are taken from the second bin
    histogram[2, 50] = 7  # 0 + 1 + 2 + 3 bins on the way exceed the half of 3.5: the search ends in no bin
    histogram[3, 50] = 6  # 0 + 1 + 2 are the half: it ends in an empty bin
    found = released_thresholds(histogram, minimum=0.001, scale=2.0)
    expected = [2 * 0.005, 2 * (0.01 + 5 / 900), 2 * 0.001, math.nan, 2 * 0.001]
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_entropies_of_the_released_code_fill_few_of_its_bins() -> None:
    old_logits = torch.zeros(1, 16, 3, 3)  # knows nothing
    labels = torch.zeros(1, 3, 3, dtype=torch.int64)
    scale = released_scale(num_old=16, num_classes=17)
    histogram = entropy_histogram(labels, old_logits, 100, scale)
    assert histogram.sum(dim=0).nonzero().tolist() == [[int(100 / (16 * math.log(17)))]]
