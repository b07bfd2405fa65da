"""Recursive ridge regression on frozen features (analytic learning): no image is kept, nothing is forgotten.

Ours, after the analytic methods of the field (e.g. SegACIL, arXiv 2412.10834), with other features, weights and labels.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from losses.ridge import add_to_grams, balanced_sums, solve_ridge, standardisation
from methods.base import IGNORE_INDEX, Looks, Method
from models import MODELS, SegmentationModel
from models.closed_form import CONTEXTS
from utils.config.section import NamedSection

STATE = ("gram", "targets", "mean", "deviation")
"""Σ w x xᵀ (F+1,F+1) and Σ w x yᵀ (F+1,K) of all steps so far, and by what features are standardised (F,); float64."""

CELLS_AT_ONCE = 8192
"""Cells whose products are added up together: few of them at a time would take longer, all of them too much memory."""


class RidgeBase(Method):
    """The base step: cross-entropy by gradient; at its end the classifier is solved and replaces the trained one.

    A cell of the feature grid is described by x, maps of the model, and a constant. Sums of w x xᵀ and w x yᵀ over the
    cells of all steps are all that is carried on. With the same labels and weights, the solution after each step equals
    that of all steps at once. What is assumed: the base step's features tell the new classes apart. Where they do not
    (a base step of few classes, or of other images), nothing later mends it.
    """

    class Options(NamedSection):
        described_by: tuple[str, ...] = ()
        """Maps of the model that describe a cell, and contexts of these (`neighbours`, `image`); empty takes all maps
        and both contexts."""
        balance: float = Field(0.5, ge=0, le=1)
        """A step's cell of class c weighs (mean count / count of c) to this power: 0 counts cells, 1 counts classes."""
        ridge: float = Field(1e-3, gt=0)
        """Ridge penalty, over the mean of the diagonal of Σ w x̃ x̃ᵀ."""
        purity: float = Field(0.8, gt=0.5, le=1)
        """Share of a cell's pixels that must have one label for the cell to count."""
        margin: float = Field(0.2, ge=0)
        """By how much the best score of a background cell must exceed the second for its class to become the cell's
        label; other background cells are left out."""

    options: Options
    same_network_as = Method
    needs_base_images: ClassVar[bool] = True

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse names that are no maps of the model, and descriptions without a map."""
        known = MODELS[config.model.name].maps
        names = config.method.described_by
        wrong = [name for name in names if name not in (*known, *CONTEXTS)]
        if wrong or (names and not set(names) & set(known)):
            return [
                f"method.described_by: found {', '.join(names)}; model.name {config.model.name} has the maps "
                f"{', '.join(known)} (one at least), and contexts are {', '.join(CONTEXTS)}"
            ]
        return []

    def end_step(self, model: SegmentationModel, old_model: SegmentationModel | None) -> None:
        """Add up the base step's cells and solve for its classes."""
        assert self.looks is not None
        self.learn_base(model, self.looks, self.num_new)
        self.solve(model)

    def learn_base(self, model: SegmentationModel, looks: Looks, num_classes: int) -> None:
        """Add up the cells of the base step's images, which also say how features are standardised."""
        grams = self.add_up(model, looks, looks.whole_images(of_base_step=True), num_classes)
        mean, deviation = standardisation(grams.sum(dim=0))
        gram, targets = balanced_sums(grams, self.options.balance)
        self.state |= {"gram": gram, "targets": targets, "mean": mean, "deviation": deviation}

    @torch.no_grad()
    def add_up(
        self,
        model: SegmentationModel,
        looks: Looks,
        images_and_labels: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
    ) -> Tensor:
        """Return Σ x̃ x̃ᵀ of every class's cells over the images of all ranks, (K,F+1,F+1) float64.

        Background cells take the label that the classifier so far gives, if there is one.
        """
        was_training = model.training
        model.eval()
        described_by = self.described_by(model)
        blank = torch.zeros(1, 3, 64, 64, device=looks.device)
        size = model.describe(blank, described_by).shape[1] + 1
        total = torch.zeros(num_classes, size, size, dtype=torch.float64, device=looks.device)
        pending: list[tuple[Tensor, Tensor]] = []
        for images, labels in images_and_labels:
            description = model.describe(images, described_by)
            cells = self.label_cells(labels, description.shape[2:], num_classes)
            if model.closed_form is not None:
                cells = self.fill_background(cells, model.closed_form(description))
            pending.append((description.permute(0, 2, 3, 1).flatten(0, 2), cells.flatten()))
            if sum(len(labels) for _, labels in pending) >= CELLS_AT_ONCE:
                add_to_grams(total, *map(torch.cat, zip(*pending, strict=True)))
                pending = []
        if pending:
            add_to_grams(total, *map(torch.cat, zip(*pending, strict=True)))
        model.train(was_training)
        return looks.sum(total)

    def described_by(self, model: SegmentationModel) -> tuple[str, ...]:
        """Return the maps and contexts that describe a cell."""
        return self.options.described_by or (*model.maps, *CONTEXTS)

    def label_cells(self, labels: Tensor, grid: torch.Size, num_classes: int) -> Tensor:
        """Return the label (B,h,w) of every cell that is pure enough, 255 elsewhere. labels: (B,H,W) int64."""
        shares = torch.stack([(labels == c).float() for c in range(num_classes)], dim=1)
        share, label = F.adaptive_avg_pool2d(shares, (grid[0], grid[1])).max(dim=1)
        return label.masked_fill(share < self.options.purity, IGNORE_INDEX)

    def fill_background(self, cells: Tensor, scores: Tensor) -> Tensor:
        """Return cell labels (B,h,w) whose background is what scores (B,K_old,h,w) say, 255 where they are unsure."""
        if scores.shape[1] < 2:
            return cells
        best, known = scores.topk(2, dim=1)
        is_sure = best[:, 0] - best[:, 1] > self.options.margin
        found = known[:, 0].masked_fill(~is_sure, IGNORE_INDEX)
        return torch.where(cells == 0, found, cells)

    def solve(self, model: SegmentationModel) -> None:
        """Let the solution of all steps so far score the classes."""
        gram, targets, mean, deviation = (self.state[name] for name in STATE)
        weight, bias = solve_ridge(gram, targets, mean, deviation, self.options.ridge)
        model.solve_classes(self.described_by(model), weight, bias)


class Ridge(RidgeBase):
    """An incremental step: one pass over its images, no gradient."""

    base_step = RidgeBase
    trains = False

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Add up the step's cells, after those of a base step that has not done so."""
        if "gram" not in self.state:
            self.learn_base(model, looks, self.num_old)
            self.solve(model)
        num_classes = self.num_old + self.num_new
        grams = self.add_up(model, looks, looks.whole_images(), num_classes)
        gram, targets = balanced_sums(grams, self.options.balance)
        self.state["gram"] = self.state["gram"] + gram
        self.state["targets"] = F.pad(self.state["targets"], (0, self.num_new)) + targets
        self.solve(model)

    def end_step(self, model: SegmentationModel, old_model: SegmentationModel | None) -> None:
        """Nothing: the classes are solved already."""
