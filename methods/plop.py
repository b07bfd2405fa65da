"""PLOP (arXiv 2011.11390): pseudo-labels by entropy, and distillation of means over strips (Local POD)."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from losses.entropy_pseudo_label import (
    NUM_BINS,
    RELEASED_BINS,
    adaptive_factor,
    entropy_histogram,
    median_thresholds,
    released_scale,
    released_thresholds,
)
from losses.fused import entropy_pseudo_labels_in_pieces
from losses.local_pod import join_new_to_background, local_pod
from losses.reduction import at_least_float32
from methods.base import Looks, Output, Targets, Term
from methods.pre_tuning import PreTuned
from models import SegmentationModel
from models.base import Start
from utils.labels import IGNORE_INDEX


class PLOP(PreTuned):
    """Cross-entropy on pseudo-labels, and Local POD over the backbone's stages, the features and the logits.

    As in the released code, new classes start as in MiB, logits of new classes are added to the background's before
    logits are compared, stages are compared before their last activation, and BatchNorm goes on training.
    """

    class Options(PreTuned.Options):
        thresholds: Literal["released", "paper"] = "released"
        """How a class's threshold on the entropy is found: as the released code does it, which accepts far more, or as
        the median of the paper."""
        threshold: float = Field(0.001, ge=0, le=1)
        """The least that a threshold may be, in the unit of `thresholds`: of `paper`, 1 is the entropy of knowing
        nothing; of `released`, that is 1 / (old classes · log of all classes)."""
        adaptive_factor: bool = True
        """Scale every image's cross-entropy by the share of its background that got a pseudo-label (eq. 8)."""
        stage_weight: float = Field(0.01, ge=0)
        """Factor of the backbone's stages (ADE20K: 0.001); all three are scaled by √(classes / new classes)."""
        feature_weight: float = Field(0.01, ge=0)
        """Factor of the features before the classifier (ADE20K: 0.001)."""
        logit_weight: float = Field(0.0005, ge=0)
        """Factor of the logits on the feature grid (ADE20K: 0.00001)."""

    options: Options
    needs_old_model = True
    needs_new_classes = False
    needs_stages = True
    defaults: ClassVar = {"train": {"freeze_bn": False}}
    start: Start = "shared_background"

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Measure the threshold of every class over the step's images (sec. 3.3)."""
        super().begin_step(model, looks)
        self.state["thresholds"] = self.measure_thresholds(looks)

    def measure_thresholds(self, looks: Looks) -> torch.Tensor:
        """Return (K_old,) the entropy below which a pixel of each class gets a pseudo-label."""
        is_released = self.options.thresholds == "released"
        scale = released_scale(self.num_old, self.num_old + self.num_new) if is_released else 1.0
        num_bins = RELEASED_BINS if is_released else NUM_BINS
        histogram = torch.zeros(self.num_old, num_bins, dtype=torch.int64, device=looks.device)
        for _, labels, old in looks:
            histogram += entropy_histogram(labels, old.logits, num_bins, scale)
        histogram, minimum = looks.sum(histogram), self.options.threshold
        if is_released:
            return released_thresholds(histogram, minimum, scale)
        return median_thresholds(histogram, minimum)

    def targets(self, labels: torch.Tensor, old: Output) -> Targets:
        """Return pseudo-labels where the old model is sure (eq. 7), and the factors of the images."""
        thresholds = self.state["thresholds"]
        pseudo_labels = entropy_pseudo_labels_in_pieces(labels, old.pixel_logits, thresholds, IGNORE_INDEX)
        if not self.options.adaptive_factor:
            return self.make_targets(labels, pseudo_labels)
        dtype = at_least_float32(old.grid_logits).dtype
        factors = adaptive_factor(labels, pseudo_labels, IGNORE_INDEX).to(dtype)
        return self.make_targets(labels, pseudo_labels, weights=factors[:, None, None].expand(labels.shape))

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return cross-entropy, as in the released code a mean over all pixels, and Local POD."""
        weights = targets.own.get("weights")
        return {
            "cross_entropy": self.cross_entropy(
                output.pixel_logits, targets.pseudo_labels, weights, "pixels"
            ),
            "local_pod": Term(self._local_pod(output, old), "images"),
        }

    def _local_pod(self, output: Output, old: Output) -> torch.Tensor:
        """Return the sum over images of the mean over maps (stages, features, logits) of their weighted distances."""
        options = self.options
        pairs = zip(output.stages, old.stages, strict=True)
        total = options.stage_weight * torch.stack([local_pod(new, kept)[0] for new, kept in pairs]).sum()
        total = total + options.feature_weight * local_pod(output.features, old.features)[0]
        joined = join_new_to_background(output.grid_logits, self.num_old)
        total = total + options.logit_weight * local_pod(joined, old.grid_logits)[0]
        num_classes = self.num_old + self.num_new
        # A step of new domains has no new class; none of the scores moves then.
        return math.sqrt(num_classes / (self.num_new or num_classes)) * (total / (len(output.stages) + 2))
