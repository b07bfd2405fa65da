"""The total loss of an iteration: the terms that are switched on, as named scalars."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from losses.feature_distillation import embedding_distillation, feature_distillation, reliability
from losses.orthogonal import OrthogonalLoss
from losses.output_distillation import background_heirs
from losses.pseudo_label import SelectivePseudoLabel
from losses.reduction import mean_or_zero
from losses.softmax_terms import softmax_terms


class Output(Protocol):
    """What a model returns, as far as the terms look at it (`models.SegOutput`)."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def grid_logits(self) -> Tensor: ...
    @property
    def features(self) -> Tensor: ...
    @property
    def class_tokens(self) -> Tensor: ...
    @property
    def class_embeddings(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Targets:
    """What the old model and the labels ask of the model, before the model has seen the images.

    pseudo_labels: (B,H,W) int64; feature_weights: (B,h,w), None without an old model;
    counts: (4,) float64, what the means of cross-entropy, feature, output and embedding distillation divide by:
    labelled pixels, grid cells of positive weight, pixels, images.
    Counts of several ranks and micro-batches add up, so that a gradient does not depend on how a batch is cut.
    """

    pseudo_labels: Tensor
    feature_weights: Tensor | None
    counts: Tensor


@dataclass(frozen=True)
class Objective:
    """Total = CE + L_feature + λ·L_output + L_orthogonal (MBS, arXiv 2407.11859); None switches a term off.

    pseudo_label: fills the background of the labels for the cross-entropy; pseudo_label_weight: weight of its
    pixels there. The other weights are the factors of their terms. Without arguments: the base step's
    cross-entropy.
    """

    pseudo_label: SelectivePseudoLabel | None = None
    pseudo_label_weight: float = 1.0
    feature_distillation_weight: float | None = None
    output_distillation_weight: float | None = None
    orthogonal_weight: float | None = None
    num_new: int = 0
    ignore_index: int = 255

    @property
    def needs_old_model(self) -> bool:
        """Whether any term looks at the old model."""
        distilled = (self.feature_distillation_weight, self.output_distillation_weight)
        return self.pseudo_label is not None or any(weight is not None for weight in distilled)

    def prepare(self, labels: Tensor, old: Output | None) -> Targets:
        """Return the targets of a (micro-)batch; labels: (B,H,W) int64; old: the old model's output, if needed."""
        pseudo_labels, feature_weights = labels, None
        num_cells = labels.new_zeros(())
        if self.pseudo_label is not None:
            assert old is not None
            pseudo_labels = self.pseudo_label(labels, old.logits)
        if self.feature_distillation_weight is not None:
            assert old is not None
            feature_weights = reliability(pseudo_labels, old.grid_logits, self.ignore_index)
            num_cells = (feature_weights > 0).sum()
        num_labelled = (pseudo_labels != self.ignore_index).sum()
        num_pixels, num_images = (num_labelled.new_tensor(count) for count in (labels.numel(), len(labels)))
        counts = torch.stack([num_labelled, num_cells, num_pixels, num_images]).double()
        return Targets(pseudo_labels, feature_weights, counts)

    def __call__(
        self,
        output: Output,
        old: Output | None,
        labels: Tensor,
        targets: Targets,
        counts: Tensor,
        share: float = 1.0,
    ) -> dict[str, Tensor]:
        """Return the weighted terms by name; over all ranks and micro-batches they add up to the loss.

        output, old: what the model and the old model return; labels: (B,H,W) int64, as given.
        counts: `Targets.counts` of all ranks and micro-batches added up; share: this batch's part of them all,
        by which the orthogonal loss, which depends on no image, is cut.
        """
        logits = output.logits
        counts = counts.to(torch.promote_types(logits.dtype, torch.float32))
        num_labelled, num_cells, num_pixels, num_images = counts
        cross_entropy, distillation = self._softmax_terms(logits, old, labels, targets)
        terms = {"cross_entropy": mean_or_zero(cross_entropy, num_labelled)}
        if self.feature_distillation_weight is not None:
            assert old is not None
            assert targets.feature_weights is not None
            total, _ = feature_distillation(output.features, old.features, targets.feature_weights)
            mean = mean_or_zero(total, num_cells * output.features.shape[1])
            terms["feature_distillation"] = self.feature_distillation_weight * mean
            if output.class_embeddings is not None and old.class_embeddings is not None:
                total, count = embedding_distillation(output.class_embeddings, old.class_embeddings)
                mean = mean_or_zero(total, num_images * (count // len(labels)))
                terms["embedding_distillation"] = self.feature_distillation_weight * mean
        if self.output_distillation_weight is not None:
            mean = mean_or_zero(distillation, num_pixels * logits.shape[1])
            terms["output_distillation"] = self.output_distillation_weight * mean
        if self.orthogonal_weight is not None:
            orthogonal = OrthogonalLoss()(output.class_tokens, self.num_new)
            terms["orthogonal"] = self.orthogonal_weight * share * orthogonal
        return terms

    def _softmax_terms(
        self, logits: Tensor, old: Output | None, labels: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of cross-entropy (pseudo-labelled pixels weighted) and output distillation (0 if off)."""
        weights = old_logits = heirs = None
        if self.pseudo_label_weight != 1:
            weights = torch.where(targets.pseudo_labels == labels, 1.0, self.pseudo_label_weight)
        if self.output_distillation_weight is not None:
            assert old is not None
            old_logits = old.logits
            heirs = background_heirs(labels, old_logits.shape[1], self.ignore_index)
        return softmax_terms(
            logits,
            targets=targets.pseudo_labels,
            weights=weights,
            ignore_index=self.ignore_index,
            old_logits=old_logits,
            heirs=heirs,
        )
