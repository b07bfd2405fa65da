"""Recursive ridge regression on frozen features (analytic learning): no image is kept, nothing is forgotten.

Ours, after the analytic methods of the field (e.g. SegACIL, arXiv 2412.10834), with other features, weights and labels.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from losses.ridge import (
    add_to_grams,
    balanced_sums,
    fit_sharpness,
    likelihood_slope,
    solve_ridge,
    standardisation,
)
from methods.base import IGNORE_INDEX, Looks, Method
from models import MODELS, SegmentationModel
from models.closed_form import CONTEXTS
from utils.config.section import NamedSection

CELLS_AT_ONCE = 8192
"""Cells whose products are added up together: few of them at a time would take longer, all of them too much memory."""
IMAGES_FOR_SHARPNESS = 64
"""Images of the base step, a rank, by which scores become probabilities: one number is fitted to their cells."""


class Ridge(Method):
    """A classifier solved from sums over the cells of all steps, the network staying as it is; one pass a step.

    The network is the pretrained one, or that of a base step of another method (`init_from`). A cell of the feature
    grid is described by x, maps of the network, and a constant. Sums of w x xᵀ and w x yᵀ over the cells of all steps
    are all that is carried on. With the same labels and weights, the solution after each step equals that of all steps
    at once. What is assumed: the features tell the new classes apart. Where they do not, nothing later mends it.
    """

    class Options(NamedSection):
        described_by: tuple[str, ...] = ()
        """Maps of the model that describe a cell, and contexts of these (`neighbours`, the mean of 3x3 cells, and
        `image`, that of all cells); empty takes the backbone's maps and `image`."""
        balance: float = Field(0.25, ge=0, le=1)
        """A step's cell of class c weighs (mean count / count of c) to this power: 0 counts cells, 1 counts classes."""
        ridge: float = Field(1e-2, gt=0)
        """Ridge penalty, over the mean of the diagonal of Σ w x̃ x̃ᵀ."""
        purity: float = Field(0.6, gt=0.5, le=1)
        """Share of a cell's pixels that must have one label for the cell to count."""
        margin: float = Field(0.2, ge=0)
        """By how much the best score of a background cell must exceed the second for its class to become the cell's
        label; other background cells are left out. A class scores about 1 where it is, others 0."""

    options: Options
    trains = False
    needs_base_images: ClassVar[bool] = True

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse names that are no maps of the model, descriptions without a map, and a network without weights."""
        known = MODELS[config.model.name].maps
        names = config.method.described_by
        wrong = [name for name in names if name not in (*known, *CONTEXTS)]
        problems = []
        if wrong or (names and not set(names) & set(known)):
            problems.append(
                f"method.described_by: found {', '.join(names)}; model.name {config.model.name} has the maps "
                f"{', '.join(known)} (one at least), and contexts are {', '.join(CONTEXTS)}"
            )
        if config.model.pretrained is False and config.init_from is None:
            problems.append(
                "model.pretrained: method ridge trains no network, so false would leave it random; set it to true or "
                "to a file of weights, or take a trained base step (init_from)"
            )
        return problems

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Add up the step's cells and solve for all classes; first for the base step's, where that has not been done.

        Raises ValueError where the sums so far are of other maps than asked for.
        """
        if "gram" not in self.state:
            self.learn_base(model, looks, self.num_old or self.num_new)
        if self.num_old:
            self.check_maps(model)
            grams = self.add_up(model, looks, looks.whole_images(), self.num_old + self.num_new)
            gram, targets = balanced_sums(grams, self.options.balance)
            self.state["gram"] = self.state["gram"] + gram
            self.state["targets"] = F.pad(self.state["targets"], (0, self.num_new)) + targets
            self.solve(model)
            self.tell(model, looks, grams, first=self.num_old)

    def check_maps(self, model: SegmentationModel) -> None:
        """Raise ValueError where the model was solved from other maps than the options name."""
        asked = self.options.described_by
        assert model.closed_form is not None
        found = model.closed_form.described_by
        if asked and asked != found:
            raise ValueError(
                f"method.described_by: found {', '.join(asked)}, but the sums of the steps so far are of "
                f"{', '.join(found)}; leave it out, or begin with a base step of these maps"
            )

    def learn_base(self, model: SegmentationModel, looks: Looks, num_classes: int) -> None:
        """Add up the cells of the base step's images, which also say how features are standardised, and solve.

        Then ask a part of them how sharp a softmax over the scores must be to give probabilities.
        """
        sample: list[tuple[Tensor, Tensor]] = []
        grams = self.add_up(model, looks, looks.whole_images(of_base_step=True), num_classes, sample)
        mean, deviation = standardisation(grams.sum(dim=0))
        gram, targets = balanced_sums(grams, self.options.balance)
        one = torch.ones((), dtype=torch.float64, device=looks.device)
        self.state |= {
            "gram": gram,
            "targets": targets,
            "mean": mean,
            "deviation": deviation,
            "sharpness": one,
        }
        weight, bias = self.solve(model)

        def slope(sharpness: float) -> Tensor:
            parts = [likelihood_slope(x @ weight.T + bias, labels, sharpness) for x, labels in sample]
            return looks.sum(sum(parts, one.new_zeros(2)))

        self.state["sharpness"] = one * fit_sharpness(slope)
        self.solve(model)
        self.tell(model, looks, grams, first=1)

    def tell(self, model: SegmentationModel, looks: Looks, grams: Tensor, first: int) -> None:
        """Say which classes from `first` on have no cell, and whose cells score higher as another class on average.

        grams: those of `add_up`.
        """
        assert model.closed_form is not None
        weight, bias = model.closed_form.weight.double(), model.closed_form.bias.double()
        names = looks.class_names
        for c in range(first, len(grams)):
            count = grams[c, -1, -1]
            if count == 0:
                looks.say(
                    f"no cell shows {names[c]} by {self.options.purity:.0%}: it will never be predicted; lower "
                    "method.purity, or look at larger images (evaluate.short_side)"
                )
                continue
            best = int((weight @ (grams[c, :-1, -1] / count) + bias).argmax())
            if best != c:
                looks.say(
                    f"cells of {names[c]} score higher as {names[best]} on average: these features do not tell the two "
                    "apart; try a backbone trained on such images, or a method that trains"
                )

    @torch.no_grad()
    def add_up(
        self,
        model: SegmentationModel,
        looks: Looks,
        images_and_labels: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        sample: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Return Σ x̃ x̃ᵀ of every class's cells over the images of all ranks, (K,F+1,F+1) float64.

        Background cells take the label that the classifier so far gives, if there is one. sample: gets the cells (N,F)
        that count, and their labels (N,), of this rank's first IMAGES_FOR_SHARPNESS images.
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
                scores = model.closed_form(description) / self.state["sharpness"]
                cells = self.fill_background(cells, scores)
            x, cells = description.permute(0, 2, 3, 1).flatten(0, 2), cells.flatten()
            pending.append((x, cells))
            if sample is not None and len(sample) < IMAGES_FOR_SHARPNESS:
                sample.append((x[cells != IGNORE_INDEX].double(), cells[cells != IGNORE_INDEX]))
            if sum(len(labels) for _, labels in pending) >= CELLS_AT_ONCE:
                add_to_grams(total, *map(torch.cat, zip(*pending, strict=True)))
                pending = []
        if pending:
            add_to_grams(total, *map(torch.cat, zip(*pending, strict=True)))
        model.train(was_training)
        return looks.sum(total)

    def described_by(self, model: SegmentationModel) -> tuple[str, ...]:
        """Return the maps and contexts that describe a cell: those of the sums so far, where there are any."""
        if model.closed_form is not None:
            return model.closed_form.described_by
        backbone = tuple(name for name in ("backbone", "stages") if name in model.maps)
        return self.options.described_by or (*backbone, "image")

    def label_cells(self, labels: Tensor, grid: torch.Size, num_classes: int) -> Tensor:
        """Return the label (B,h,w) of every cell that is pure enough, 255 elsewhere. labels: (B,H,W) int64."""
        present = labels[labels < num_classes].unique()
        if len(present) == 0:
            return labels.new_full((len(labels), *grid), IGNORE_INDEX)
        shares = torch.stack([(labels == c).float() for c in present], dim=1)
        share, index = F.adaptive_avg_pool2d(shares, (grid[0], grid[1])).max(dim=1)
        return present[index].masked_fill(share < self.options.purity, IGNORE_INDEX)

    def fill_background(self, cells: Tensor, scores: Tensor) -> Tensor:
        """Return cell labels (B,h,w) whose background is what scores (B,K_old,h,w) say, 255 where they are unsure."""
        if scores.shape[1] < 2:
            return cells
        best, known = scores.topk(2, dim=1)
        is_sure = best[:, 0] - best[:, 1] > self.options.margin
        found = known[:, 0].masked_fill(~is_sure, IGNORE_INDEX)
        return torch.where(cells == 0, found, cells)

    def solve(self, model: SegmentationModel) -> tuple[Tensor, Tensor]:
        """Let the solution of all steps so far score the classes; returns it, (K,F) and (K,), before it is sharpened."""
        gram, targets, mean, deviation, sharpness = (
            self.state[name] for name in ("gram", "targets", "mean", "deviation", "sharpness")
        )
        weight, bias = solve_ridge(gram, targets, mean, deviation, self.options.ridge)
        model.solve_classes(self.described_by(model), weight * sharpness, bias * sharpness)
        return weight, bias


Ridge.base_step = Ridge
