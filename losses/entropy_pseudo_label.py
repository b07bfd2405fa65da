"""Pseudo-labels by the old model's entropy, and the factor of images it is unsure of (PLOP, arXiv 2011.11390)."""

import math

import torch
from torch import Tensor

from losses.reduction import at_least_float32

NUM_BINS = 1000
"""Bins of the histogram from which the median entropy of a class is read: it is exact to a thousandth."""


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy (B,H,W) of softmax(logits) over its largest value, log K: 0 is sure, 1 knows nothing; K at least 2."""
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1) / math.log(logits.shape[1])


def entropy_histogram(labels: Tensor, old_logits: Tensor) -> Tensor:
    """Count (K_old, NUM_BINS) int64 the background pixels by the class that the old model sees and its entropy.

    Histograms of batches and ranks add up. labels: (B,H,W) int64; old_logits: (B,K_old,H,W).
    """
    num_old = old_logits.shape[1]
    bins = (normalised_entropy(old_logits) * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    cells = (old_logits.argmax(dim=1) * NUM_BINS + bins)[labels == 0]
    return torch.bincount(cells, minlength=num_old * NUM_BINS).view(num_old, NUM_BINS)


def median_thresholds(histogram: Tensor, minimum: float) -> Tensor:
    """Return (K_old,) the median entropy of every class (sec. 3.3), `minimum` at least, 1 for a class never seen.

    Ours: the median is the upper edge of the bin that holds it; a class that no image of the step was taken for accepts
    every entropy.
    """
    counts = histogram.cumsum(dim=1)
    half = (counts[:, -1:] + 1) // 2
    medians = ((counts < half).sum(dim=1) + 1).to(torch.float32) / histogram.shape[1]
    return torch.where(counts[:, -1] > 0, medians, 1.0).clamp(min=minimum)


def entropy_pseudo_labels(
    labels: Tensor, old_logits: Tensor, thresholds: Tensor, ignore_index: int
) -> Tensor:
    """Put the old model's class where the label is background and its entropy is below the class's threshold (eq. 7).

    Background pixels of which the old model is less sure are ignored; it may be sure of background. Other labels stay.
    labels: (B,H,W) int64; old_logits: (B,K_old,H,W); thresholds: (K_old,). Returns (B,H,W) int64, no gradient.
    """
    old_logits = old_logits.detach()
    old_class = old_logits.argmax(dim=1)
    is_sure = normalised_entropy(old_logits) < thresholds[old_class]
    return torch.where(labels == 0, torch.where(is_sure, old_class, ignore_index), labels)


def adaptive_factor(labels: Tensor, pseudo_labels: Tensor, ignore_index: int) -> Tensor:
    """Return ν (B,) float32, the share of each image's background pixels that got a pseudo-label (eq. 8).

    It scales the image's cross-entropy. Ours: an image without background, where nothing was withheld, has 1.
    """
    is_background = labels == 0
    num_background = is_background.flatten(1).sum(dim=1)
    num_sure = (is_background & (pseudo_labels != ignore_index)).flatten(1).sum(dim=1)
    return torch.where(num_background > 0, num_sure / num_background.clamp(min=1), 1.0)
