"""SSUL (arXiv 2106.11562): everything but the new classes' rows stays frozen; one sigmoid a class."""

from typing import ClassVar

import torch
from pydantic import Field

from losses.binary_cross_entropy import sigmoid_pseudo_labels
from methods.base import Output, SigmoidMethod, Targets
from utils.config.section import NamedSection


class SSUL(SigmoidMethod):
    """Binary cross-entropy on pseudo-labels, over features that stay as the base step left them.

    Ours: no saliency and so no unknown class; a step trains rows of the 1x1 classifier, where the paper's step has a
    head with a 3x3 convolution of its own.
    """

    class Options(NamedSection):
        threshold: float = Field(0.7, ge=0, le=1)
        """Score from which an old class is taken over as pseudo-label."""

    options: Options
    needs_old_model = True
    defaults: ClassVar = {"train": {"freeze_extractor": True}}

    def targets(self, labels: torch.Tensor, old: Output) -> Targets:
        """Return the old model's likeliest class where the label is background and that class is sure (eq. 2)."""
        return self.make_targets(labels, sigmoid_pseudo_labels(labels, old.logits, self.options.threshold))
