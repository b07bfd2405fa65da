"""What any method can be given for rare classes: weights, Dice, focal loss, images shown more often."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from losses.dice import count_shown, soft_dice
from losses.focal import binary_focal, focal_cross_entropy
from losses.fused import binary_terms, softmax_terms
from losses.pieces import Logits
from losses.reduction import at_least_float32
from methods import Output, Targets, Term
from utils.config.section import Section
from utils.labels import IGNORE_INDEX

Weight = Annotated[float, Field(gt=0, le=1e6)]


class RareConfig(Section):
    """Terms beside those of the method, for the classes that a step labels, and the order of images; all off."""

    class_weights: Literal["none", "balanced"] | dict[str, Weight] = "none"
    """Weights of the labelled pixels of classes in the cross-entropy: `balanced` is √(pixels of the most frequent label
    / pixels of the class) over the step's masks; a mapping, as {pedestrian: 20}, names some. All else has 1."""
    dice_weight: float = Field(0.0, ge=0)
    """Factor of the Dice loss of the classes that a step labels, a mean over images and the classes they show."""
    focal_weight: float = Field(0.0, ge=0)
    """Factor of the focal loss of the pixels of these classes, a mean over labelled pixels."""
    focal_gamma: float = Field(2.0, ge=0, le=10)
    """Its γ: how much less counts what is right already."""
    oversample: float = Field(0.0, ge=0, le=1)
    """Share of a step's images below which a class is rare: an image that shows it is repeated √(this / the class's
    share) times an epoch; 0 repeats none."""

    @property
    def has_terms(self) -> bool:
        """Whether something is added to the loss."""
        return self.class_weights != "none" or self.dice_weight > 0 or self.focal_weight > 0


@dataclass(frozen=True)
class RareTerms:
    """The terms of a step, for classes from `first_class` on, that its labels show (no background).

    weights: (256,) float32, those of labels in the cross-entropy, on the device of the labels. scores: what logits are
    read as. In incremental steps background may be any old class, so that only the pixels of new classes have these
    terms.
    """

    config: RareConfig
    scores: str
    first_class: int
    num_classes: int
    weights: Tensor

    def ask(self, targets: Targets) -> Targets:
        """Return a method's targets with the count that the Dice loss is divided by."""
        if not self.config.dice_weight:
            return targets
        count = count_shown(targets.labels, self.first_class, self.num_classes)
        return replace(targets, counts={**targets.counts, "shown_classes": count})

    def terms(self, output: Output, targets: Targets) -> dict[str, Term]:
        """Return the terms that are switched on; with that of the weights, the cross-entropy is the weighted one."""
        config, labels, terms = self.config, targets.labels, dict[str, Term]()
        if config.class_weights != "none":
            terms["class_weights"] = Term(self._excess(output.pixel_logits, labels), "labelled")
        if config.dice_weight:
            logits = at_least_float32(output.logits)
            probabilities = logits.sigmoid() if self.scores == "sigmoid" else logits.softmax(dim=1)
            total, _ = soft_dice(probabilities, labels, self.first_class, IGNORE_INDEX)
            terms["dice"] = Term(total, "shown_classes", weight=config.dice_weight)
        if config.focal_weight:
            focal = binary_focal if self.scores == "sigmoid" else focal_cross_entropy
            total = focal(output.logits, labels, config.focal_gamma, self.first_class, IGNORE_INDEX)
            terms["focal"] = Term(total, "labelled", weight=config.focal_weight)
        return terms

    def _excess(self, logits: Logits, labels: Tensor) -> Tensor:
        """Return what weights add to the cross-entropy of the classes' pixels, whose weight there is 1."""
        is_counted = (labels >= self.first_class) & (labels != IGNORE_INDEX)
        weights = self.weights[labels] - 1
        if self.scores == "sigmoid":
            weights = weights.masked_fill(~is_counted, 0)
            return binary_terms(logits, labels, IGNORE_INDEX, weights, self.first_class)[0]
        counted = labels.masked_fill(~is_counted, IGNORE_INDEX)
        return softmax_terms(logits, targets=counted, weights=weights, ignore_index=IGNORE_INDEX)[0]


def weight_table(weights: dict[int, float]) -> Tensor:
    """Return weights by label (256,) float32, 1 where none is given."""
    table = torch.ones(256)
    for class_id, weight in weights.items():
        table[class_id] = weight
    return table
