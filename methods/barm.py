"""BARM (arXiv 2407.09838): the background's classifier rests, and every step learns by how much to lower it."""

from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from losses.background_adaptation import (
    adaptation_cross_entropy,
    adaptation_triplet,
    background_features,
    group_distillation,
    training_logits,
)
from losses.fused import binary_terms, sigmoid_pseudo_labels_in_pieces
from methods.base import Output, SigmoidMethod, Targets, Term
from utils.config.section import NamedSection
from utils.labels import IGNORE_INDEX
from utils.upsampling import upsampled_like


class BARM(SigmoidMethod):
    """Binary cross-entropy on pseudo-labels that the step's own scores alone learn from, two terms that adapt the
    residual, and distillation of features on background and of all raw scores.

    The network is DeepLabV3's with `model.background_residuals`: with ears as in the paper, or, ours and light, with
    rows on the shared features.
    """

    class Options(NamedSection):
        threshold: float = Field(0.7, ge=0, le=1)
        """Score from which an old class is taken over as pseudo-label."""
        adaptation_weight: float = Field(1.0, ge=0)
        """Factor of what lowers the residual on new classes, a mean over their cells."""
        triplet_weight: float = Field(5.0, ge=0)
        """Factor of what keeps it from falling on background, a mean over background cells."""
        feature_weight: float = Field(4.0, ge=0)
        """Factor of the distillation of features on background, a mean over all elements of a map, a sum over maps."""
        group_weight: float = Field(1.0, ge=0)
        """Factor of the distillation of raw scores, a mean over cells of sums over channels."""

    options: Options
    needs_old_model = True
    lowers_background = True
    defaults: ClassVar = {"model": {"background_residuals": "ears"}}

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse networks without residuals."""
        if config.model.model_dump().get("background_residuals", "none") != "none":
            return []
        return [
            "method.name: barm lowers the background by residuals, which the network has not; set "
            "model.background_residuals to ears or rows (model.name deeplabv3), or choose another method"
        ]

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return pseudo-labels where an old class is sure, and the cells of new classes and of background."""
        pseudo_labels = sigmoid_pseudo_labels_in_pieces(labels, old.pixel_logits, self.options.threshold)
        # Floating point because interpolate has no integer kernel; class ids are exact in it.
        cells = F.interpolate(labels[:, None].float(), old.features.shape[2:], mode="nearest")[:, 0]
        is_background = cells == 0
        is_new = ~is_background & (cells != IGNORE_INDEX)
        counts = {
            "cells": labels.new_full((), cells.numel()),
            "new_cells": is_new.sum(),
            "background_cells": is_background.sum(),
        }
        return self.make_targets(labels, pseudo_labels, counts, is_new=is_new, is_background=is_background)

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the five terms."""
        options, own, outputs = self.options, targets.own, output.head_outputs
        logits = upsampled_like(training_logits(outputs), output.pixel_logits)
        cross_entropy, _ = binary_terms(logits, targets.pseudo_labels, IGNORE_INDEX)
        residual = outputs[-1][:, 0]
        lowered, _ = adaptation_cross_entropy(residual, own["is_new"])
        held, _ = adaptation_triplet(residual, own["is_background"])
        kept = background_features(output.ears, old.ears, own["is_background"])
        groups = group_distillation(outputs, old.head_outputs)
        num_channels = output.features.shape[1]
        return {
            "cross_entropy": Term(cross_entropy, "labelled"),
            "adaptation": Term(lowered, "new_cells", weight=options.adaptation_weight),
            "triplet": Term(held, "background_cells", weight=options.triplet_weight),
            "feature_distillation": Term(kept, "cells", num_channels, options.feature_weight),
            "group_distillation": Term(groups, "cells", weight=options.group_weight),
        }
