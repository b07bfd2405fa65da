"""Decomposed Knowledge Distillation (DKD, arXiv 2210.05941): both parts of a logit are kept, not their sum alone."""

from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from losses.binary_distillation import binary_distillation
from losses.decomposed_distillation import decomposed_distillation
from losses.reduction import at_least_float32
from methods.base import IGNORE_INDEX, Output, SigmoidMethod, Targets, Term
from models import MODELS, SegmentationModel
from models.classifier import copy_first_row
from utils.config.section import NamedSection


class DKDBase(SigmoidMethod):
    """The base step: binary cross-entropy, and an auxiliary classifier learns that no pixel shows a class to come.

    Ours: every cell of the feature grid counts, ignored pixels too, and the features learn nothing from it, so that the
    network is the same with and without it.
    """

    class Options(NamedSection):
        auxiliary_weight: float = Field(1.0, ge=0)
        """Factor of what the auxiliary classifier learns; no other parameter learns from it."""

    options: Options
    same_network_as = SigmoidMethod

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse models whose classes are not rows of a 1x1 classifier."""
        if MODELS[config.model.name].has_linear_classifier:
            return []
        return [
            f"method.name: dkd is about the rows of a 1x1 classifier, which model.name {config.model.name} has not; "
            "use model.name deeplabv3, or another method"
        ]

    def parts(self, channels: int) -> dict[str, nn.Module]:
        """Return the auxiliary classifier, a row of no class."""
        return {"auxiliary": nn.Conv2d(channels, 1, kernel_size=1)}

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the cross-entropy and what trains the auxiliary classifier."""
        terms = {"cross_entropy": self.cross_entropy(output.logits, targets.labels)}
        return {**terms, "auxiliary": self.auxiliary_term(output)}

    def auxiliary_term(self, output: Output) -> Term:
        """Return −log(1 − σ(z)) of the auxiliary classifier's score z, summed over cells."""
        logits = self.modules["auxiliary"](at_least_float32(output.features.detach()))
        return Term(F.softplus(logits).sum(), "images", logits[0].numel(), self.options.auxiliary_weight)


class DKD(DKDBase):
    """Binary cross-entropy of the new classes, distillation of the old ones' scores and of their two parts."""

    class Options(DKDBase.Options):
        output_weight: float = Field(5.0, ge=0)
        """Factor of the output distillation, a mean over pixels of sums over old classes."""
        decomposed_weight: float = Field(5.0, ge=0)
        """Factor of the decomposed distillation, a mean over cells of sums over old classes."""

    options: Options
    base_step = DKDBase
    needs_old_model = True

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
        logits, labels, options = output.logits, targets.labels, self.options
        cross_entropy = self.cross_entropy(logits, labels, first_class=self.num_old)
        distillation, _ = binary_distillation(logits, old.logits, labels, IGNORE_INDEX)
        decomposed, count = decomposed_distillation(
            output.features, output.class_tokens, old.features, old.class_tokens
        )
        return {
            "cross_entropy": cross_entropy,
            "output_distillation": Term(distillation, "pixels", weight=options.output_weight),
            "decomposed_distillation": Term(
                decomposed, "images", count // len(labels), options.decomposed_weight
            ),
            "auxiliary": self.auxiliary_term(output),
        }
