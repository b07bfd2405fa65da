"""Adaptive feature distillation: keep features where the old model is reliable (MBS, arXiv 2407.11859)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.reduction import at_least_float32, mean_or_zero


def reliability(pseudo_labels: Tensor, old_grid_logits: Tensor, ignore_index: int = 255) -> Tensor:
    """Weight of every cell of the feature grid: 1 on old classes, p_0 on background, 0 on new or ignored.

    pseudo_labels: (B,H,W) int64; shrunk to the grid by nearest neighbour.
    old_grid_logits: (B,K_old,h,w), the old model's logits at the grid; p_0 is its background probability.
    Returns (B,h,w) floating point (float32 at least) without gradient.
    """
    old_grid_logits = at_least_float32(old_grid_logits.detach())
    num_old = old_grid_logits.shape[1]
    # Floating point because interpolate has no integer kernel; class ids are exact in it.
    grid = F.interpolate(pseudo_labels[:, None].to(old_grid_logits.dtype), old_grid_logits.shape[2:])[:, 0]
    background_probability = old_grid_logits.softmax(dim=1)[:, 0]
    is_old_class = (grid > 0) & (grid < num_old) & (grid != ignore_index)
    return torch.where(grid == 0, background_probability, is_old_class.to(background_probability.dtype))


def feature_distillation(features: Tensor, old_features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of w·(f − f°)² and the number of elements (channels × cells) with w > 0.

    With all weights 1 it is the feature term of ILT (arXiv 1907.13372).
    features, old_features: (B,D,h,w); weights: (B,h,w). No gradient reaches old_features or weights.
    """
    weights = weights.detach()
    is_selected = weights > 0
    difference = at_least_float32(features) - at_least_float32(old_features.detach())
    # A cell that is left out may hold an overflow: its weight of 0 would turn inf into nan.
    total = (weights[:, None] * difference.masked_fill(~is_selected[:, None], 0).square()).sum()
    return total, is_selected.sum() * features.shape[1]


def embedding_distillation(embeddings: Tensor, old_embeddings: Tensor) -> tuple[Tensor, int]:
    """Return the sum of squared differences over the old classes' embeddings, and the number of elements.

    embeddings: (B,K,D); old_embeddings: (B,K_old,D), gets no gradient. Models that decode classes per image
    (Segmenter) add the plain mean to feature distillation.
    """
    old_embeddings = at_least_float32(old_embeddings.detach())
    difference = at_least_float32(embeddings[:, : old_embeddings.shape[1]]) - old_embeddings
    return difference.square().sum(), old_embeddings.numel()


class AdaptiveFeatureDistillation(nn.Module):
    """Mean of `feature_distillation` over its elements; exactly 0 where no weight is positive."""

    def forward(self, features: Tensor, old_features: Tensor, weights: Tensor) -> Tensor:
        return mean_or_zero(*feature_distillation(features, old_features, weights))
