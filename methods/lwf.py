"""Learning without Forgetting (LwF, arXiv 1606.09282) and ILT (arXiv 1907.13372), as MiB compares them."""

import torch
from pydantic import Field

from losses.feature_distillation import feature_distillation
from losses.logit_distillation import logit_distillation
from methods.base import Method, Output, Targets, Term, embedding_terms
from utils.config.section import NamedSection


class LwF(Method):
    """Cross-entropy, and the old model's softmax over the old classes is distilled.

    The weights of both methods are those of MiB's comparison (arXiv 2002.00718, sec. 5.1).
    """

    class Options(NamedSection):
        output_weight: float = Field(100.0, ge=0)
        """Factor of the output distillation, a mean over pixels and old classes."""

    options: Options
    needs_old_model = True
    needs_new_classes = False

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return cross-entropy and output distillation."""
        cross_entropy = self.cross_entropy(output.logits, targets.pseudo_labels)
        total, _ = logit_distillation(output.logits, old.logits)
        distillation = Term(total, "pixels", old.logits.shape[1], self.options.output_weight)
        return {"cross_entropy": cross_entropy, "output_distillation": distillation}


class ILT(LwF):
    """LwF, and the features are kept as they were.

    Ours: the features are those before the classifier, where the paper compares the encoder's output.
    """

    class Options(LwF.Options):
        feature_weight: float = Field(100.0, ge=0)
        """Factor of the feature distillation, a mean over elements."""

    options: Options

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return LwF's terms and feature distillation, of the classes' embeddings too where the model has them."""
        weight = self.options.feature_weight
        terms = super().terms(output, old, targets)
        total, _ = feature_distillation(output.features, old.features, torch.ones_like(old.features[:, 0]))
        return {
            "cross_entropy": terms["cross_entropy"],
            "feature_distillation": Term(total, "images", old.features[0].numel(), weight),
            **embedding_terms(output, old, weight),
            "output_distillation": terms["output_distillation"],
        }
