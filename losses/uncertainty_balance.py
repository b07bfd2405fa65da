"""Weights of pixels by how sure the old model is and how rare their class is (UCB, doi 10.1109/TIP.2025.3576477)."""

import math

import torch
from torch import Tensor

from losses.fused import normalised_entropy_in_pieces
from losses.pieces import Logits


def uncertainty_weights(
    pseudo_labels: Tensor, old_logits: Logits, threshold: float, rescale: bool = False
) -> Tensor:
    """Return u (B,H,W), exp(1 − H/θ) where the old model's entropy H is below θ, else 0; e for new classes.

    H is that of a softmax over the old model's scores, over its largest value, also where they are sigmoids'. rescale:
    bring H to [0,1] by its extremes over the batch first, as the released code does on PLOP. pseudo_labels: (B,H,W)
    int64; old_logits: (B,K_old,H,W), K_old at least 2. No gradient.
    """
    num_old = old_logits.shape[1]
    entropy = normalised_entropy_in_pieces(old_logits).clamp(min=0)
    if rescale:
        least, most = entropy.aminmax()
        entropy = (entropy - least) / (most - least).clamp(min=torch.finfo(entropy.dtype).tiny)
    is_new = (pseudo_labels >= num_old) & (pseudo_labels != 255)
    entropy = entropy.masked_fill(is_new, 0)
    return torch.where(entropy < threshold, (1 - entropy / threshold).exp(), 0.0)


def count_classes(labels: Tensor, num_classes: int, weights: Tensor | None = None) -> Tensor:
    """Return (K,) float64, the pixels of every class, or the sum of their weights; 255 counts as background.

    labels, weights: (B,H,W).
    """
    labels = labels.masked_fill(labels == 255, 0).flatten()
    weights = torch.ones(labels.shape, device=labels.device) if weights is None else weights.flatten()
    # Not bincount: on a GPU the host would wait for it, and weights would add up in any order.
    counts = torch.zeros(num_classes, dtype=torch.float64, device=labels.device)
    return counts.scatter_add_(0, labels, weights.double())


def class_weights(pixels: Tensor, num_old: int, largest: float | None = None) -> Tensor:
    """Return c (K,) float32: the mean share of the foreground classes seen so far over the class's own share.

    It is clamped to [1/b, b], b being `largest`, √(K_new/K_old) or its inverse, the larger of them, where that is None.
    Background has 1, a class not seen so far b. Ours: where there is no background either, the mean is still over all
    foreground classes. pixels: (K,), counted over the step so far.
    """
    num_new = len(pixels) - num_old
    largest = largest or math.sqrt(max(num_new / num_old, num_old / num_new))
    foreground = pixels[1:]
    mean = foreground.sum() / (foreground > 0).sum().clamp(min=1)
    weights = torch.where(foreground > 0, mean / foreground, largest).clamp(1 / largest, largest)
    return torch.cat([torch.ones_like(weights[:1]), weights]).float()


def balanced_weights(weights: Tensor, labels: Tensor, of_classes: Tensor) -> Tensor:
    """Return u · c of each pixel's class (B,H,W). weights: u (B,H,W); labels: (B,H,W) int64; of_classes: c (K,)."""
    return weights * of_classes[labels.masked_fill(labels == 255, 0)]
