"""UCB (IEEE TIP 2025): pixels weigh by how sure the old model is and how rare their class is, on three methods."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from losses.uncertainty_balance import balanced_weights, class_weights, count_classes, uncertainty_weights
from methods.base import Looks, Method, Output, Targets, Term
from methods.mbs import MBS
from methods.plop import PLOP
from methods.ssul import SSUL
from models import SegmentationModel
from utils.config.section import NamedSection
from utils.labels import IGNORE_INDEX


class UCB(Method):
    """The weights, for a method with pseudo-labels that follows in the list of bases: L = Σ w·ℓ / Σ w.

    Both sums run over labelled pixels of all ranks and micro-batches, so that the weights' scale does not matter.
    `class_pixels` (K,) of the state counts the pseudo-labels of the step so far, the batch's own included.
    """

    class Options(NamedSection):
        entropy_threshold: float = Field(0.5, gt=0, le=1)
        """Normalised entropy of the old model from which a pixel of no new class weighs nothing."""
        rescale_entropy: bool = False
        """Bring entropies to [0,1] by their extremes first, over what a rank sees at a time: the gradient then depends
        on how a batch is cut. The released code does it on PLOP, with a threshold of 0.8."""
        largest_class_weight: float | None = Field(None, ge=1)
        """Largest weight of a class, its inverse being the least; null is √(old / new classes) or its inverse (VOC),
        the released code has 1.25 on ADE20K."""

    options: Options
    needs_old_model = True
    needs_new_classes = True

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Start to count pixels anew."""
        super().begin_step(model, looks)
        self.state["class_pixels"] = torch.zeros(self.num_old + self.num_new, device=looks.device).double()

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return the method's targets, how sure each pixel is, and what classes weigh by."""
        self.of_classes: Tensor | None = None
        targets, options = super().targets(labels, old), self.options
        pseudo_labels, num_classes = targets.pseudo_labels, self.num_old + self.num_new
        sureness = uncertainty_weights(
            pseudo_labels, old.pixel_logits, options.entropy_threshold, options.rescale_entropy
        )
        labelled = sureness.masked_fill(pseudo_labels == IGNORE_INDEX, 0)
        counts = {
            "class_pixels": count_classes(pseudo_labels, num_classes),
            "class_sureness": count_classes(pseudo_labels, num_classes, labelled),
        }
        return replace(
            targets, counts={**targets.counts, **counts}, own={**targets.own, "sureness": sureness}
        )

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the method's terms, its cross-entropy as a mean by the pixels' weights."""
        counts, own = targets.counts, targets.own
        if self.of_classes is None:
            self.state["class_pixels"] = self.state["class_pixels"] + counts["class_pixels"]
            options = self.options
            self.of_classes = class_weights(
                self.state["class_pixels"], self.num_old, options.largest_class_weight
            )
        weights = balanced_weights(own["sureness"], targets.pseudo_labels, self.of_classes)
        if "weights" in own:
            weights = weights * own["weights"]
        terms = super().terms(output, old, replace(targets, own={**own, "weights": weights}))
        total_weight = (self.of_classes * counts["class_sureness"]).sum()
        cross_entropy = terms["cross_entropy"]
        # Where nothing is sure, weights and term are 0.
        scale = counts[cross_entropy.over] / torch.where(total_weight > 0, total_weight, 1)
        return {**terms, "cross_entropy": cross_entropy._replace(weight=cross_entropy.weight * scale)}


class PLOPUCB(UCB, PLOP):
    """PLOP with these weights; every background pixel gets the old model's class, however unsure it is."""

    class Options(UCB.Options, PLOP.Options):
        naive: bool = True
        """Take the old model's class at every background pixel; false keeps PLOP's thresholds."""
        adaptive_factor: bool = False
        """Scale every image's cross-entropy by the share of its background that got a pseudo-label; naive ones all
        have."""

    options: Options

    def measure_thresholds(self, looks: Looks) -> Tensor:
        """Return thresholds beyond every entropy, or PLOP's."""
        if self.options.naive:
            return torch.full((self.num_old,), 2.0, device=looks.device)
        return super().measure_thresholds(looks)


class SSULUCB(UCB, SSUL):
    """SSUL with these weights."""

    class Options(UCB.Options, SSUL.Options):
        unknown: Literal["none"] = "none"
        """There is no unknown class: its pixels have no class whose rarity could be counted."""

    options: Options


class MBSUCB(UCB, MBS):
    """MBS with these weights: what its selective labels ignore stays ignored."""

    class Options(UCB.Options, MBS.Options):
        pass

    options: Options
