"""Pseudo-labels by the old model's entropy, and the factor of images it is unsure of (PLOP, arXiv 2011.11390)."""

import math

import torch
from torch import Tensor

from losses.reduction import at_least_float32

NUM_BINS = 1000
"""Bins of the histogram from which the paper's median is read: it is exact to a thousandth."""
RELEASED_BINS = 100
"""Bins of the released code."""


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy (B,H,W) of softmax(logits) over its largest value, log K: 0 is sure, 1 knows nothing; K at least 2."""
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1) / math.log(logits.shape[1])


def entropy_histogram(
    labels: Tensor, old_logits: Tensor, num_bins: int = NUM_BINS, largest: float = 1.0
) -> Tensor:
    """Count (K_old, num_bins) int64 the background pixels by the class that the old model sees and its entropy.

    Bins cut [0, largest] of `normalised_entropy`; what lies beyond counts in the last. Histograms of batches and ranks
    add up. labels: (B,H,W) int64; old_logits: (B,K_old,H,W).
    """
    num_old = old_logits.shape[1]
    bins = (normalised_entropy(old_logits) / largest * num_bins).long().clamp(0, num_bins - 1)
    cells = (old_logits.argmax(dim=1) * num_bins + bins)[labels == 0]
    return torch.bincount(cells, minlength=num_old * num_bins).view(num_old, num_bins)


def median_thresholds(histogram: Tensor, minimum: float) -> Tensor:
    """Return (K_old,) the median entropy of every class (sec. 3.3), `minimum` at least, 1 for a class never seen.

    This is the paper's rule. Ours: the median is the upper edge of the bin that holds it; a class that no image of the
    step was taken for accepts every entropy.
    """
    counts = histogram.cumsum(dim=1)
    half = (counts[:, -1:] + 1) // 2
    medians = ((counts < half).sum(dim=1) + 1).to(torch.float32) / histogram.shape[1]
    return torch.where(counts[:, -1] > 0, medians, 1.0).clamp(min=minimum)


def released_scale(num_old: int, num_classes: int) -> float:
    """Return K_old · log K, by which entropies of the released code are smaller than `normalised_entropy`.

    It averages over the channels of what has to be summed, and divides by the log of all classes once more.
    """
    return num_old * math.log(num_classes)


def released_thresholds(histogram: Tensor, minimum: float, scale: float) -> Tensor:
    """Return (K_old,) float32 what the released code takes for the median entropy of every class.

    It is another rule than `median_thresholds`. Entropies are smaller by `scale` (`released_scale`) than the bins
    expect, so that few bins hold all of them; within a bin the code interpolates from its lower edge; what it counts on
    the way to the median are numbers of bins, not of pixels. `minimum` is in its unit, and the threshold of a class
    never seen. NaN, where the search ends in an empty bin, accepts nothing.

    histogram: of `entropy_histogram(…, num_bins, largest=scale)`. The result is in the unit of `normalised_entropy`.
    """
    num_bins = histogram.shape[1]
    thresholds = torch.zeros(len(histogram))
    for c, counts in enumerate(histogram.cpu()):
        if counts.sum() == 0:
            continue
        half, passed, lower, index = counts.sum() / 2, 0.0, 0.0, 0
        for edge in range(num_bins):
            lower = edge / num_bins
            # Rounded down as there: 29, 57 and 58 hundredths times 100 fall into the bin below.
            index = int(lower * num_bins)
            if passed <= half <= passed + counts[index]:
                break
            passed += lower * num_bins
        thresholds[c] = lower + (half - passed) / counts[index] / num_bins
    return (thresholds.clamp(min=minimum) * scale).to(histogram.device)


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
    """Return ν (B,) float64, the share of each image's background pixels that got a pseudo-label (eq. 8).

    It scales the image's cross-entropy. As in the released code, an image without background has 0: it teaches nothing.
    """
    is_background = labels == 0
    num_background = is_background.flatten(1).sum(dim=1)
    num_sure = (is_background & (pseudo_labels != ignore_index)).flatten(1).sum(dim=1)
    return num_sure / (num_background.double() + 1e-6)
