"""Learning without Forgetting (LwF, arXiv 1606.09282) and ILT (arXiv 1907.13372), as MiB compares them."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from losses.feature_distillation import feature_distillation
from losses.fused import logit_terms
from methods.base import Method, Output, Targets, Term, embedding_terms
from utils.config.section import NamedSection
from utils.labels import IGNORE_INDEX


class LwF(Method):
    """Cross-entropy, and the old model's softmax over the old classes is distilled.

    Both methods are those of MiB's comparison (arXiv 2002.00718, sec. 5.1) as MiB's released code has them: all means
    run over all pixels, those that are ignored among them, and BatchNorm goes on training. Its data call void
    background (`train.void_label`).
    """

    class Options(NamedSection):
        output_weight: float = Field(100.0, ge=0)
        """Factor of the output distillation, a mean over pixels and old classes."""

    options: Options
    needs_old_model = True
    needs_new_classes = False
    defaults: ClassVar = {"train": {"freeze_bn": False}}

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return cross-entropy and output distillation."""
        cross_entropy, distillation = logit_terms(
            output.pixel_logits, old.pixel_logits, targets.pseudo_labels, IGNORE_INDEX
        )
        return {
            "cross_entropy": Term(cross_entropy, "pixels"),
            "output_distillation": Term(distillation, "pixels", self.num_old, self.options.output_weight),
        }


class ILT(LwF):
    """LwF, and the features are kept as they were: by default those of the backbone's last stage, as in the released
    code.
    """

    class Options(LwF.Options):
        features: Literal["last_stage", "before_classifier"] = "last_stage"
        """Which features are kept: the backbone's last map, or those that other methods distil."""
        feature_weight: float = Field(100.0, ge=0)
        """Factor of the feature distillation, a mean over elements."""

    options: Options

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return LwF's terms and feature distillation.

        Of the features before the classifier, those of the classes' embeddings too, where the model has them.
        """
        weight = self.options.feature_weight
        terms = super().terms(output, old, targets)
        features, old_features, embeddings = output.backbone, old.backbone, dict[str, Term]()
        if self.options.features == "before_classifier":
            features, old_features = output.features, old.features
            embeddings = embedding_terms(output, old, weight)
        assert features is not None
        assert old_features is not None
        total, _ = feature_distillation(features, old_features, torch.ones_like(old_features[:, 0]))
        return {
            "cross_entropy": terms["cross_entropy"],
            "feature_distillation": Term(total, "images", old_features[0].numel(), weight),
            **embeddings,
            "output_distillation": terms["output_distillation"],
        }
