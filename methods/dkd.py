"""Decomposed Knowledge Distillation (DKD, arXiv 2210.05941): both parts of a logit are kept, not their sum alone."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from losses.decomposed_distillation import decomposed_distillation
from losses.fused import binary_terms
from losses.pieces import Logits
from losses.reduction import at_least_float32
from methods.base import Looks, Output, SigmoidMethod, Targets, Term, refuse_without_rows
from models import SegmentationModel
from models.classifier import copy_first_row
from utils.config.section import NamedSection
from utils.labels import IGNORE_INDEX
from utils.upsampling import upsampled_like


class DKDBase(SigmoidMethod):
    """The base step: binary cross-entropy, and an auxiliary classifier learns that no pixel shows a class to come.

    As in the released code there is no classifier of the background: its row is zero and stays so, for no term asks
    it. A pixel is background where no class scores more than σ(0) = 0.5. The features learn nothing from the auxiliary
    classifier.
    """

    class Options(NamedSection):
        positive_weight_base: float = Field(2.0, gt=0)
        """Factor on the cross-entropy of a class at pixels that show it, in the base step (ADE20K: 35)."""
        void_is_negative: bool = False
        """Let ignored pixels show none of the classes that the cross-entropy asks, as the released code has it; false
        leaves them out."""
        auxiliary_weight: float = Field(1.0, ge=0)
        """Factor of what the auxiliary classifier learns; no other parameter learns from it."""

    options: Options

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse models whose classes are not rows of a 1x1 classifier."""
        return refuse_without_rows(config)

    @property
    def positive_weight(self) -> float:
        """Factor on the cross-entropy of a class at pixels that show it."""
        return self.options.positive_weight_base

    def parts(self, channels: int) -> dict[str, nn.Module]:
        """Return the auxiliary classifier, a row of no class."""
        return {"auxiliary": nn.Conv2d(channels, 1, kernel_size=1)}

    @torch.no_grad()
    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Take the background's classifier away: a base step of another method has trained one."""
        for name in ("weight", "bias"):
            model.get_parameter(f"classifier.heads.0.{name}")[:1].zero_()

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return the labels, void as background where the options say so."""
        if self.options.void_is_negative:
            return self.make_targets(labels, labels.masked_fill(labels == IGNORE_INDEX, 0))
        return self.make_targets(labels)

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the cross-entropy of the step's classes and what trains the auxiliary classifier."""
        cross_entropy, _ = self.pixel_terms(output.pixel_logits, None, targets)
        return {"cross_entropy": Term(cross_entropy, "labelled"), "auxiliary": self.auxiliary_term(output)}

    def pixel_terms(
        self, logits: Logits, old_logits: Logits | None, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of the cross-entropy of the step's classes and of the old ones' distillation, if any."""
        return binary_terms(
            logits,
            targets.pseudo_labels,
            IGNORE_INDEX,
            first_class=max(self.num_old, 1),
            positive_weight=self.positive_weight,
            old_logits=old_logits,
        )

    def auxiliary_term(self, output: Output) -> Term:
        """Return −log(1 − σ(z)) of the auxiliary classifier's score z at image size, summed over pixels."""
        logits = self.modules["auxiliary"](at_least_float32(output.features.detach()))
        total = F.softplus(upsampled_like(logits, output.pixel_logits).whole()).sum()
        return Term(total, "pixels", weight=self.options.auxiliary_weight)


DKDBase.base_step = DKDBase


class DKD(DKDBase):
    """Binary cross-entropy of the new classes, distillation of the old ones' scores and of their two parts.

    As in the released code, weights decay in the new classes' classifier only.
    """

    class Options(DKDBase.Options):
        positive_weight: float = Field(1.0, gt=0)
        """Factor on the cross-entropy of a class at pixels that show it, in incremental steps (ADE20K: 35)."""
        output_weight: float = Field(5.0, ge=0)
        """Factor of the output distillation, a mean over pixels of sums over old classes."""
        decomposed_weight: float = Field(5.0, ge=0)
        """Factor of the decomposed distillation, a mean over cells of sums over old classes."""

    options: Options
    base_step = DKDBase
    needs_old_model = True
    defaults: ClassVar = {"train": {"weight_decay_on": "new_classes"}}

    @property
    def positive_weight(self) -> float:
        return self.options.positive_weight

    def add_classes(self, model: SegmentationModel, num_new: int) -> None:
        """Let new classes start as the auxiliary classifier; one that is untrained starts as the background."""
        model.grow(num_new)
        auxiliary, heads = self.modules["auxiliary"], model.get_submodule("classifier.heads")
        *_, newest = heads.children()
        if not self.parts_are_trained:
            copy_first_row(heads.get_submodule("0"), auxiliary)
        copy_first_row(auxiliary, newest)

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return all four terms; no pixel so far shows a class to come, and that goes on being learned."""
        options = self.options
        cross_entropy, distillation = self.pixel_terms(output.pixel_logits, old.pixel_logits, targets)
        decomposed, count = decomposed_distillation(
            output.features, output.class_tokens, old.features, old.class_tokens
        )
        return {
            "cross_entropy": Term(cross_entropy, "labelled"),
            "output_distillation": Term(distillation, "pixels", weight=options.output_weight),
            "decomposed_distillation": Term(
                decomposed, "images", count // len(old.features), options.decomposed_weight
            ),
            "auxiliary": self.auxiliary_term(output),
        }
