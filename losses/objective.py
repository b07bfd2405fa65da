"""The total loss of an iteration: the terms that are switched on, as named scalars."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from losses.auxiliary import auxiliary_loss
from losses.binary_cross_entropy import binary_cross_entropy
from losses.binary_distillation import binary_distillation
from losses.decomposed_distillation import decomposed_distillation
from losses.entropy_pseudo_label import adaptive_factor
from losses.feature_distillation import embedding_distillation, feature_distillation, reliability
from losses.local_pod import join_new_to_background, local_pod
from losses.logit_distillation import logit_distillation
from losses.orthogonal import OrthogonalLoss
from losses.output_distillation import background_heirs
from losses.reduction import mean_or_zero
from losses.softmax_terms import softmax_terms
from losses.unbiased import unbiased_cross_entropy, unbiased_distillation


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
    @property
    def stages(self) -> tuple[Tensor, ...]: ...
    @property
    def auxiliary_logits(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Targets:
    """What the old model and the labels ask of the model, before the model has seen the images.

    pseudo_labels: (B,H,W) int64; feature_weights: (B,h,w), None without feature distillation;
    image_weights: (B,), the images' factors in the cross-entropy, None for 1;
    counts: (4,) float64, what the means of cross-entropy, feature, output and embedding distillation divide by:
    labelled pixels, grid cells of positive weight, pixels, images.
    Counts of several ranks and micro-batches add up, so that a gradient does not depend on how a batch is cut.
    """

    pseudo_labels: Tensor
    feature_weights: Tensor | None
    counts: Tensor
    image_weights: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """Total = CE + L_feature + λ·L_output + L_orthogonal (MBS, arXiv 2407.11859) + those of others; None is off.

    cross_entropy: over a softmax, over one that knows what background hides (`losses/unbiased.py`), or over a
    sigmoid a class, of all classes or of the new ones. pseudo_label: (labels, old logits) -> labels, fills the
    background of the labels for the cross-entropy; pseudo_label_weight: weight of its pixels there; adaptive_factor:
    PLOP's factor of every image, with the mean then over all pixels, as the paper has it. local_pod_weights: of the
    backbone's stages, the features and the logits, all scaled by √(K / K_new). auxiliary_weight: for models that have
    an auxiliary classifier. The other weights are the factors of their terms; a kind says what of; where the model
    decodes classes per image, feature distillation of any kind keeps their embeddings as well.
    Without arguments: a base step's cross-entropy.
    """

    pseudo_label: Callable[[Tensor, Tensor], Tensor] | None = None
    pseudo_label_weight: float = 1.0
    feature_distillation_weight: float | None = None
    output_distillation_weight: float | None = None
    orthogonal_weight: float | None = None
    num_new: int = 0
    ignore_index: int = 255
    cross_entropy: Literal["plain", "unbiased", "bce", "bce_new"] = "plain"
    adaptive_factor: bool = False
    feature_distillation_kind: Literal["adaptive", "plain"] = "adaptive"
    output_distillation_kind: Literal["label_guided", "plain", "unbiased", "binary"] = "label_guided"
    local_pod_weights: tuple[float, float, float] | None = None
    decomposed_distillation_weight: float | None = None
    auxiliary_weight: float | None = None

    @property
    def needs_old_model(self) -> bool:
        """Whether any term looks at the old model."""
        terms = (
            self.pseudo_label,
            self.feature_distillation_weight,
            self.output_distillation_weight,
            self.local_pod_weights,
            self.decomposed_distillation_weight,
        )
        return any(term is not None for term in terms)

    @property
    def needs_stages(self) -> bool:
        """Whether a term looks at the feature maps of the backbone's stages."""
        return self.local_pod_weights is not None

    def prepare(self, labels: Tensor, old: Output | None) -> Targets:
        """Return the targets of a (micro-)batch; labels: (B,H,W) int64; old: the old model's output, if needed."""
        pseudo_labels, feature_weights, image_weights = labels, None, None
        num_cells = labels.new_zeros(())
        if self.pseudo_label is not None:
            assert old is not None
            pseudo_labels = self.pseudo_label(labels, old.logits)
        if self.feature_distillation_weight is not None:
            assert old is not None
            feature_weights = torch.ones_like(old.features[:, 0])
            if self.feature_distillation_kind == "adaptive":
                feature_weights = reliability(pseudo_labels, old.grid_logits, self.ignore_index)
            num_cells = (feature_weights > 0).sum()
        if self.adaptive_factor:
            image_weights = adaptive_factor(labels, pseudo_labels, self.ignore_index)
        num_labelled = (pseudo_labels != self.ignore_index).sum()
        num_pixels, num_images = (num_labelled.new_tensor(count) for count in (labels.numel(), len(labels)))
        counts = torch.stack([num_labelled, num_cells, num_pixels, num_images]).double()
        return Targets(pseudo_labels, feature_weights, counts, image_weights)

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
        cross_entropy, distillation, num_channels = self._pixel_terms(logits, old, labels, targets)
        num_counted = num_pixels if self.adaptive_factor else num_labelled
        terms = {"cross_entropy": mean_or_zero(cross_entropy, num_counted)}
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
            mean = mean_or_zero(distillation, num_pixels * num_channels)
            terms["output_distillation"] = self.output_distillation_weight * mean
        if self.orthogonal_weight is not None:
            orthogonal = OrthogonalLoss()(output.class_tokens, self.num_new)
            terms["orthogonal"] = self.orthogonal_weight * share * orthogonal
        if self.local_pod_weights is not None:
            assert old is not None
            scale = math.sqrt(logits.shape[1] / self.num_new)
            terms["local_pod"] = mean_or_zero(scale * self._local_pod(output, old), num_images)
        if self.decomposed_distillation_weight is not None:
            assert old is not None
            total, count = decomposed_distillation(
                output.features, output.class_tokens, old.features, old.class_tokens
            )
            mean = mean_or_zero(total, num_images * (count // len(labels)))
            terms["decomposed_distillation"] = self.decomposed_distillation_weight * mean
        if self.auxiliary_weight is not None:
            assert output.auxiliary_logits is not None
            total, count = auxiliary_loss(output.auxiliary_logits)
            mean = mean_or_zero(total, num_images * (count // len(labels)))
            terms["auxiliary"] = self.auxiliary_weight * mean
        return terms

    def _pixel_terms(
        self, logits: Tensor, old: Output | None, labels: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor, int]:
        """Return the sums of cross-entropy and output distillation (0 if off), and the latter's channels.

        Those of both that are over the plain softmax share it.
        """
        weights = self._pixel_weights(labels, targets)
        distils = self.output_distillation_weight is not None
        is_plain, is_guided = self.cross_entropy == "plain", self.output_distillation_kind == "label_guided"
        arguments: dict[str, Tensor | None] = {}
        if is_plain:
            arguments = {"targets": targets.pseudo_labels, "weights": weights}
        if distils and is_guided:
            assert old is not None
            heirs = background_heirs(labels, old.logits.shape[1], self.ignore_index)
            arguments |= {"old_logits": old.logits, "heirs": heirs}
        cross_entropy = distillation = logits.new_zeros(())
        if arguments:
            cross_entropy, distillation = softmax_terms(logits, ignore_index=self.ignore_index, **arguments)
        num_channels = logits.shape[1]
        if not is_plain:
            cross_entropy = self._cross_entropy(logits, targets.pseudo_labels, weights)
        if distils and not is_guided:
            assert old is not None
            if self.output_distillation_kind == "binary":
                distillation, count = binary_distillation(logits, old.logits, labels, self.ignore_index)
            elif self.output_distillation_kind == "plain":
                distillation, count = logit_distillation(logits, old.logits)
            else:
                distillation, count = unbiased_distillation(logits, old.logits)
            num_channels = count // labels.numel()
        return cross_entropy, distillation, num_channels

    def _pixel_weights(self, labels: Tensor, targets: Targets) -> Tensor | None:
        """Return the factors (B,H,W) of pixels in the cross-entropy, pseudo-labelled ones and images weighted."""
        weights = None
        if self.pseudo_label_weight != 1:
            weights = torch.where(targets.pseudo_labels == labels, 1.0, self.pseudo_label_weight)
        if targets.image_weights is None:
            return weights
        factors = targets.image_weights[:, None, None].expand(labels.shape)
        return factors if weights is None else weights * factors

    def _cross_entropy(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Return the sum of a cross-entropy that is not over the plain softmax."""
        num_old = logits.shape[1] - self.num_new
        if self.cross_entropy in ("bce", "bce_new"):
            first_class = num_old if self.cross_entropy == "bce_new" else 0
            return binary_cross_entropy(logits, labels, self.ignore_index, weights, first_class)[0]
        return unbiased_cross_entropy(logits, labels, num_old, self.ignore_index, weights)[0]

    def _local_pod(self, output: Output, old: Output) -> Tensor:
        """Return the sum over images of the mean over maps (stages, features, logits) of their weighted distances."""
        assert self.local_pod_weights is not None
        assert output.stages
        stage_weight, features_weight, logits_weight = self.local_pod_weights
        pairs = zip(output.stages, old.stages, strict=True)
        total = stage_weight * torch.stack([local_pod(new, kept)[0] for new, kept in pairs]).sum()
        total = total + features_weight * local_pod(output.features, old.features)[0]
        joined = join_new_to_background(output.grid_logits, old.grid_logits.shape[1])
        total = total + logits_weight * local_pod(joined, old.grid_logits)[0]
        return total / (len(output.stages) + 2)
