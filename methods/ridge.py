"""Recursive ridge regression on frozen features (analytic learning): no image is kept, nothing is forgotten.

Ours, after the analytic methods of the field (e.g. SegACIL, arXiv 2412.10834), with other features, weights and labels.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from losses.ridge import add_to_grams, balanced_sums, solve_ridge, standardisation
from methods.base import Looks
from methods.closed_form import Cells, ClosedForm, Sums
from models import MODELS, SegmentationModel
from models.closed_form import CONTEXTS
from utils.config.section import NamedSection
from utils.labels import IGNORE_INDEX


class Ridge(ClosedForm):
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
        scales: tuple[PositiveFloat, ...] = Field((1.0,), min_length=1)
        """By what an image's sides are multiplied when its cells are added up: once for each."""
        flips: bool = False
        """Add the cells of the mirrored images up too."""

    options: Options

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

    def described_by(self, model: SegmentationModel) -> tuple[str, ...]:
        """Return the maps of the sums so far, else those of the options; raise ValueError where the two differ."""
        asked = self.options.described_by
        if model.closed_form is None:
            backbone = tuple(name for name in ("backbone", "stages") if name in model.maps)
            return asked or (*backbone, "image")
        found = model.closed_form.described_by
        if asked and asked != found:
            raise ValueError(
                f"method.described_by: found {', '.join(asked)}, but the sums of the steps so far are of "
                f"{', '.join(found)}; leave it out, or begin with a base step of these maps"
            )
        return found

    def label_cells(
        self, model: SegmentationModel, images: Tensor, labels: Tensor, description: Tensor, num_classes: int
    ) -> Tensor:
        """Return the labels (B,h,w) of cells that are pure enough; of background, what the classifier so far gives."""
        cells = self.pure_cells(labels, description.shape[2:], num_classes)
        scores = self.score(model, description)
        return cells if scores is None else self.fill_background(cells, scores)

    def views(self, images_and_labels: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels as `scales` and `flips` ask for them; labels keep their size."""
        for images, labels in images_and_labels:
            for scale in self.options.scales:
                x = images
                if scale != 1:
                    sides = [max(1, round(scale * side)) for side in images.shape[2:]]
                    x = F.interpolate(images.float(), sides, mode="bilinear", antialias=True)
                yield x, labels
                if self.options.flips:
                    yield x.flip(3), labels.flip(2)

    def add_up(self, looks: Looks, cells: Cells, num_channels: int, num_classes: int) -> Sums:
        """Return the sums, a constant 1 being the last feature; the first step's say how features are standardised."""
        size = num_channels + 1
        grams = torch.zeros(num_classes, size, size, dtype=torch.float64, device=looks.device)
        for x, labels in cells:
            add_to_grams(grams, x, labels)
        grams = looks.sum(grams)
        if "mean" not in self.state:
            self.state["mean"], self.state["deviation"] = standardisation(grams.sum(dim=0))
        gram, targets = balanced_sums(grams, self.options.balance)
        return Sums(gram, targets, grams[:, :-1, -1], grams[:, -1, -1])

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the weights (K,F) and constants (K,) of the ridge regression over standardised features."""
        gram, targets, mean, deviation = (self.state[n] for n in ("gram", "targets", "mean", "deviation"))
        return solve_ridge(gram, targets, mean, deviation, self.options.ridge)

    def without_cells(self, name: str) -> str:
        """Return what is said of a class that no cell shows."""
        return (
            f"no cell shows {name} by {self.options.purity:.0%}: it will never be predicted; lower "
            "method.purity, or look at larger images (evaluate.short_side)"
        )

    def pure_cells(self, labels: Tensor, grid: torch.Size, num_classes: int) -> Tensor:
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


Ridge.base_step = Ridge
