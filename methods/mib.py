"""Modeling the Background (MiB, arXiv 2002.00718): losses and initialisation that know what background hides."""

from typing import ClassVar

from pydantic import Field

from losses.fused import unbiased_terms
from methods.base import Output, Targets, Term
from methods.pre_tuning import PreTuned
from models.base import Start
from utils.labels import IGNORE_INDEX


class MiB(PreTuned):
    """The background of a step's labels may be any old class; the old model's background may be any new one.

    Background and new classes start by sharing what the background scored (eq. 10). As in the released code, both means
    run over all pixels, ignored ones among them, and BatchNorm goes on training; its data call void background
    (`train.void_label`).
    """

    class Options(PreTuned.Options):
        output_weight: float = Field(10.0, ge=0)
        """Factor of the output distillation, a mean over pixels and old classes."""

    options: Options
    needs_old_model = True
    needs_new_classes = False
    defaults: ClassVar = {"train": {"freeze_bn": False}}
    start: Start = "shared_background"

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return unbiased cross-entropy (eq. 4 and 5) and unbiased distillation (eq. 8 and 9)."""
        cross_entropy, distillation = unbiased_terms(
            output.pixel_logits, old.pixel_logits, targets.labels, IGNORE_INDEX
        )
        return {
            "cross_entropy": Term(cross_entropy, "pixels"),
            "output_distillation": Term(distillation, "pixels", self.num_old, self.options.output_weight),
        }
