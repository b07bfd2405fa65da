"""Mitigating Background Shift in Class-Incremental Semantic Segmentation (MBS, arXiv 2407.11859)."""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from losses.feature_distillation import feature_distillation, reliability
from losses.fused import select_pseudo_labels_in_pieces, softmax_terms
from losses.logit_distillation import logit_distillation
from losses.orthogonal import OrthogonalLoss
from losses.output_distillation import background_heirs
from methods.base import Looks, Output, Targets, Term, embedding_terms
from methods.pre_tuning import PreTuned
from methods.prototype_replay import draw_replay, measure_classes, plan_replay
from models import MODELS, SegmentationModel
from models.base import Start
from utils.labels import IGNORE_INDEX
from utils.upsampling import whole


class MBS(PreTuned):
    """Cross-entropy on selective pseudo-labels + adaptive feature distillation + label-guided output distillation
    + orthogonal loss; new classes start as the background (background weight transfer).
    """

    class Options(PreTuned.Options):
        pseudo_labels: bool = True
        """Fill the background of the labels with what the old model is sure of."""
        selective: bool = True
        """Ignore pixels where old classes outweigh the background but none is sure; false leaves them background."""
        threshold: float = Field(0.7, ge=0, le=1)
        """Probability from which an old class is taken over as pseudo-label."""
        pseudo_label_weight: float = Field(1.0, ge=0)
        """Weight of pseudo-labelled pixels in the cross-entropy; labelled ones have 1."""
        feature_distillation: bool = True
        """Keep the features as they were."""
        adaptive: bool = True
        """Weigh every cell by what the old model knows of it; false takes all alike, as ILT does."""
        feature_weight: float = Field(1.0, ge=0)
        """Factor of the feature distillation, a mean over the elements of weighted cells."""
        output_distillation: bool = True
        """Keep the old model's probabilities."""
        label_guided: bool = True
        """Expect the old background's probability of the labelled new class; false asks the old classes alone (LwF)."""
        output_weight: float = Field(25.0, ge=0)
        """λ of the output distillation, a mean over pixels and channels."""
        orthogonal: bool = True
        """Turn the new classes' tokens away from all others."""
        orthogonal_weight: float = Field(1.0, ge=0)
        """Factor of the orthogonal loss."""
        weight_transfer: bool = True
        """Let new classes start as copies of the background's classifier."""
        replay_weight: float = Field(0.0, ge=0)
        """Factor of the cross-entropy of old classes' features, drawn from statistics that every step keeps (STAR); a
        sum over the features, divided by the cells of the batch. 0 keeps none."""

    options: Options

    @property
    def needs_old_model(self) -> bool:
        """Whether a part that asks the old model is on."""
        options = self.options
        asks = options.pseudo_labels or options.feature_distillation or options.output_distillation
        return asks or options.replay_weight > 0 or super().needs_old_model

    @property
    def begins_with(self) -> str | None:
        """Replay goes on from statistics, which what trains the base step does not keep."""
        return "counts" if self.options.replay_weight else None

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse replay where the model cannot score a feature by itself."""
        problems = super().check(config)
        if config.method.replay_weight and not MODELS[config.model.name].has_linear_classifier:
            problems.append(
                f"method.replay_weight: scores features that no image gave, which model.name {config.model.name} "
                "cannot: it decodes classes per image; set it to 0, or use model.name deeplabv3"
            )
        return problems

    @property
    def start(self) -> Start:
        """As the background (background weight transfer), or at random."""
        return "background" if self.options.weight_transfer else "random"

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return selective pseudo-labels and the reliability of every cell of the feature grid."""
        self.drawn: tuple[Tensor, Tensor] | None = None
        options, pseudo_labels = self.options, labels
        if options.pseudo_labels:
            pseudo_labels = select_pseudo_labels_in_pieces(
                labels, old.pixel_logits, options.threshold, IGNORE_INDEX, options.selective
            )
        if not options.feature_distillation:
            return self.make_targets(labels, pseudo_labels)
        cells = torch.ones_like(old.features[:, 0])
        if options.adaptive:
            cells = reliability(pseudo_labels, old.grid_logits, IGNORE_INDEX)
        return self.make_targets(labels, pseudo_labels, {"cells": (cells > 0).sum()}, cells=cells)

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the four terms, those that are switched on."""
        options = self.options
        cross_entropy, distillation = self._pixel_terms(output, old, targets)
        terms = {"cross_entropy": cross_entropy}
        if options.feature_distillation:
            total, _ = feature_distillation(output.features, old.features, targets.own["cells"])
            channels = output.features.shape[1]
            terms["feature_distillation"] = Term(total, "cells", channels, options.feature_weight)
            terms |= embedding_terms(output, old, options.feature_weight)
        if options.output_distillation:
            terms["output_distillation"] = distillation
        if options.orthogonal:
            orthogonal = OrthogonalLoss()(output.class_tokens, self.num_new)
            terms["orthogonal"] = Term(orthogonal, "batches", weight=options.orthogonal_weight)
        if options.replay_weight:
            terms["replay"] = self._replay(targets.counts["images"] * output.features[0, 0].numel())
        return terms

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Tune new classes, and choose what is replayed, where these options are on."""
        super().begin_step(model, looks)
        if self.options.replay_weight:
            plan_replay(self.state, looks, model, self.num_old, self.num_new)

    def end_step(self, model: SegmentationModel, old_model: SegmentationModel | None) -> None:
        """Measure the step's classes for the replay of later steps."""
        if self.options.replay_weight:
            assert self.looks is not None
            measure_classes(self.state, self.looks, model, self.num_old, self.num_new)

    def _replay(self, num_cells: Tensor) -> Term:
        """Return the cross-entropy of replayed features; num_cells: of all ranks' and micro-batches' grids."""
        assert self.model is not None
        if self.drawn is None:
            self.drawn = draw_replay(self.state)
        features, classes = self.drawn
        total = F.cross_entropy(self.model.classify(features).flatten(1), classes, reduction="sum")
        # All ranks and micro-batches replay the same features, each a share of them.
        return Term(total, "batches", weight=self.options.replay_weight / num_cells)

    def _pixel_terms(self, output: Output, old: Output, targets: Targets) -> tuple[Term, Term]:
        """Return cross-entropy and output distillation, which share the softmax where they can."""
        options, labels, logits = self.options, targets.labels, output.pixel_logits
        guided = {}
        if options.output_distillation and options.label_guided:
            heirs = background_heirs(labels, self.num_old, IGNORE_INDEX)
            guided = {"old_logits": old.pixel_logits, "heirs": heirs}
        weights = targets.own.get("weights")
        if options.pseudo_label_weight != 1:
            lowered = torch.where(targets.pseudo_labels == labels, 1.0, options.pseudo_label_weight)
            weights = lowered if weights is None else weights * lowered
        cross_entropy, distillation = softmax_terms(
            logits, targets=targets.pseudo_labels, weights=weights, ignore_index=IGNORE_INDEX, **guided
        )
        channels = logits.shape[1]
        if options.output_distillation and not options.label_guided:
            distillation, _ = logit_distillation(whole(logits), old.logits)
            channels = self.num_old
        return (
            Term(cross_entropy, "labelled"),
            Term(distillation, "pixels", channels, options.output_weight),
        )
