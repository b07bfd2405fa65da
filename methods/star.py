"""STAR (NeurIPS 2023): old classes are replayed as features drawn from what every step keeps of its classes."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from losses.binary_cross_entropy import soft_binary_cross_entropy
from losses.feature_distillation import feature_distillation
from losses.fused import binary_terms
from losses.prototypes import discrimination, labels_on_grid, shares_on_grid
from losses.reduction import at_least_float32
from methods.base import Looks, Output, SigmoidMethod, Targets, Term
from methods.prototype_replay import draw_replay, measure_classes, plan_replay
from models import MODELS, SegmentationModel
from utils.labels import IGNORE_INDEX
from utils.upsampling import channels, whole


class STARBase(SigmoidMethod):
    """The base step: binary cross-entropy; at its end the classes are measured."""

    same_network_as = SigmoidMethod

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse models that cannot score a feature by itself."""
        if MODELS[config.model.name].has_linear_classifier:
            return []
        return [
            f"method.name: star scores features that no image gave, which model.name {config.model.name} cannot: it "
            "decodes classes per image; use model.name deeplabv3, or another method"
        ]

    def end_step(self, model: SegmentationModel, old_model: SegmentationModel | None) -> None:
        """Measure the step's classes with the model that it ends with."""
        assert self.looks is not None
        measure_classes(self.state, self.looks, model, self.num_old, self.num_new)


class STAR(STARBase):
    """Binary cross-entropy of the new classes over pixels, replayed features and background, in the balance that joint
    training would have; features of old classes are kept, those of new ones pushed from the nearest old prototype.

    Ours: the background has a row; its score is distilled, and asked to vanish where a new class is labelled.
    """

    class Options(STARBase.Options):
        positive_weight: float = Field(4.0, gt=0)
        """Weight of pixels that show a new class in the classification; the paper has 4 for VOC, 30 for ADE20K."""
        feature_weight: float = Field(5.0, ge=0)
        """Factor of the distillation of features where an old class is."""
        discrimination_weight: float = Field(0.05, ge=0)
        """Factor of what pushes new classes from old prototypes."""
        background_weight: float = Field(1.0, ge=0)
        """Factor of the distillation of the background's score, a mean over pixels (ours)."""

    options: Options
    defaults: ClassVar = {"train": {"freeze_dropout": True}}
    base_step = STARBase
    needs_old_model = True
    begins_with = "counts"

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Choose what is replayed; the base step's images are measured where its checkpoint has not done so."""
        plan_replay(self.state, looks, model, self.num_old, self.num_new)

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return where an old class is kept, what is surely background, and where new classes are, on the grid."""
        self.drawn: tuple[Tensor, Tensor] | None = None
        size, seen = old.features.shape[2:], old.logits.argmax(dim=1)
        kept = shares_on_grid((labels == 0) & (seen != 0), size)
        is_background = (labels_on_grid(labels, size) == 0) & (labels_on_grid(seen, size) == 0)
        new_classes = range(self.num_old, self.num_old + self.num_new)
        shares = torch.stack([shares_on_grid(labels == c, size) for c in new_classes], dim=1)
        counts = {
            "cells": labels.new_full((), is_background.numel()),
            "background_cells": is_background.sum(),
            "kept_cells": kept.sum(),
            "shown": (shares.sum(dim=(2, 3)) > 0).sum(),
        }
        return self.make_targets(labels, None, counts, kept=kept, is_background=is_background, shares=shares)

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the classification in its three parts, the kept features, the discrimination, and the background."""
        options, own = self.options, targets.own
        kept, _ = feature_distillation(output.features, old.features, own["kept"])
        exists = self.state["counts"][1 : self.num_old] > 0
        prototypes = self.state["prototypes"][1 : self.num_old]
        pushed, _ = discrimination(output.features, own["shares"], prototypes, exists)
        return {
            **self.classification(output, targets),
            "feature_distillation": Term(
                kept, "kept_cells", output.features.shape[1], options.feature_weight
            ),
            "discrimination": Term(pushed, "shown", weight=options.discrimination_weight),
            "background_distillation": self.background_term(output, old, targets),
        }

    def classification(self, output: Output, targets: Targets) -> dict[str, Term]:
        """Return (R + F·M/S + G·ρT/S) / (1 + M/S + ρT/S) in its parts: means over labelled pixels, over M replayed
        features and over the T background cells of S.
        """
        assert self.model is not None
        if self.drawn is None:
            self.drawn = draw_replay(self.state)
        features, classes = self.drawn
        counts, ratio = targets.counts, self.state["background_ratio"]
        num_cells = counts["cells"]
        num_shown = num_cells + len(classes) + ratio * counts["background_cells"]
        pixels, _ = binary_terms(
            output.pixel_logits,
            targets.labels,
            IGNORE_INDEX,
            first_class=self.num_old,
            positive_weight=self.options.positive_weight,
        )
        # All ranks and micro-batches replay the same features, each a share of them.
        replayed = F.softplus(self.model.classify(features)[:, self.num_old :]).sum()
        negatives = F.softplus(at_least_float32(output.grid_logits[:, self.num_old :])).sum(dim=1)
        background = negatives.masked_fill(~targets.own["is_background"], 0).sum()
        return {
            "cross_entropy": Term(pixels, "labelled", weight=num_cells / num_shown),
            "replay": Term(replayed, "batches", weight=1 / num_shown),
            "background": Term(background, "cells", weight=ratio * num_cells / num_shown),
        }

    def background_term(self, output: Output, old: Output, targets: Targets) -> Term:
        """Return the distillation of the background's sigmoid, whose target is 0 where a new class is labelled."""
        labels = targets.labels
        is_new = (labels >= self.num_old) & (labels != IGNORE_INDEX)
        was, is_now = (whole(channels(x, slice(1)))[:, 0] for x in (old.pixel_logits, output.pixel_logits))
        expected = at_least_float32(was).sigmoid().masked_fill(is_new, 0)
        total = soft_binary_cross_entropy(is_now, expected).sum()
        return Term(total, "pixels", weight=self.options.background_weight)
