"""A classifier that is solved from sums over cells, a pass over the images a step: what such methods share."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.ridge import fit_sharpness, likelihood_slope
from methods.base import Looks, Method
from models import SegmentationModel
from utils.labels import IGNORE_INDEX

CELLS_AT_ONCE = 8192
"""Cells whose products are added up together: few of them at a time would take longer, all of them too much memory."""
IMAGES_FOR_SHARPNESS = 64
"""Images of the base step, a rank, by which scores become probabilities: one number is fitted to their cells."""

Cells = Iterable[tuple[Tensor, Tensor]]
"""Descriptions (N,C) and labels (N,) int64 of cells, 255 where a cell does not count."""


class Sums(NamedTuple):
    """What cells add up to over all ranks, float64: F features a cell, K classes.

    gram: Σ w x xᵀ (F,F) and targets: Σ w x yᵀ (F,K), which steps add up; of_class: Σ x over a class's cells (K,F), and
    counts: how many they are (K,).
    """

    gram: Tensor
    targets: Tensor
    of_class: Tensor
    counts: Tensor


class ClosedForm(Method):
    """The network stays as it is; the sums over the cells of all steps are carried on, and they give the classifier.

    A subclass says by what a cell is described, what its label is, what is summed, and how the sums are solved.
    state: 'gram' and 'targets' of all steps so far, and 'sharpness', by which a softmax over scores is a probability.
    """

    trains = False
    begins_with = "gram"

    def described_by(self, model: SegmentationModel) -> tuple[str, ...]:
        """Return the maps and contexts (`SegmentationModel.describe`) that describe a cell."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Return what is regressed on, (N,F) float64, of descriptions (N,C)."""
        return x.double()

    def label_cells(
        self, model: SegmentationModel, images: Tensor, labels: Tensor, description: Tensor, num_classes: int
    ) -> Tensor:
        """Return the labels (B,h,w) of the cells described (B,C,h,w), 255 where one does not count.

        labels: (B,H,W) int64, as given; a background cell of a later step may take the label that scores give.
        """
        raise NotImplementedError

    def add_up(self, looks: Looks, cells: Cells, num_channels: int, num_classes: int) -> Sums:
        """Return the sums over the cells of all ranks; num_channels: C, also where this rank has no cell."""
        raise NotImplementedError

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the weights (K,F) and constants (K,) that the sums so far give."""
        raise NotImplementedError

    @torch.no_grad()
    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Add up the step's cells and solve for all classes; first for the base step's, where that has not been done.

        A part of the base step's cells then says how sharp a softmax over scores must be to give probabilities.
        """
        model.eval()
        if "gram" not in self.state:
            sample: list[tuple[Tensor, Tensor]] = []
            images_and_labels = looks.whole_images(of_base_step=True)
            sums = self.learn(model, looks, images_and_labels, self.num_old or self.num_new, sample)
            self.sharpen(model, looks, sample)
            self.tell(model, looks, sums, first=1)
        if self.num_old:
            sums = self.learn(model, looks, looks.whole_images(), self.num_old + self.num_new)
            self.tell(model, looks, sums, first=self.num_old)

    def learn(
        self,
        model: SegmentationModel,
        looks: Looks,
        images_and_labels: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        sample: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Sums:
        """Add the cells of these images to the sums of earlier steps, and solve; return the sums of these alone.

        sample: gets the cells of this rank's first IMAGES_FOR_SHARPNESS images.
        """
        cells = self.cells(model, images_and_labels, num_classes, sample)
        sums = self.add_up(looks, cells, self.num_channels(model, looks), num_classes)
        for name, x in (("gram", sums.gram), ("targets", sums.targets)):
            if name in self.state:  # a new class begins with no cell
                x = x + F.pad(self.state[name], (0, x.shape[1] - self.state[name].shape[1]))
            self.state[name] = x
        self.apply(model)
        return sums

    def num_channels(self, model: SegmentationModel, looks: Looks) -> int:
        """Return C, by how many numbers the maps describe a cell."""
        blank = torch.zeros(1, 3, 64, 64, device=looks.device)
        return model.describe(blank, self.described_by(model)).shape[1]

    def views(self, images_and_labels: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the images and labels whose cells are added up: these, or several views of each."""
        return images_and_labels

    def cells(
        self,
        model: SegmentationModel,
        images_and_labels: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        sample: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the cells of a few views, CELLS_AT_ONCE at least but for the last; sample: as in `learn`."""
        pending: list[tuple[Tensor, Tensor]] = []
        for images, given in self.views(images_and_labels):
            description = model.describe(images, self.described_by(model))
            labels = self.label_cells(model, images, given, description, num_classes).flatten()
            x = description.permute(0, 2, 3, 1).flatten(0, 2)
            pending.append((x, labels))
            if sample is not None and len(sample) < IMAGES_FOR_SHARPNESS:
                sample.append((x[labels != IGNORE_INDEX], labels[labels != IGNORE_INDEX]))
            if sum(len(labels) for _, labels in pending) >= CELLS_AT_ONCE:
                yield join(pending)
                pending = []
        if pending:
            yield join(pending)

    def sharpen(self, model: SegmentationModel, looks: Looks, sample: list[tuple[Tensor, Tensor]]) -> None:
        """Fit the factor by which a softmax over scores makes the labels of the cells of all ranks most likely."""
        weight, bias = self.solve()

        def slope(sharpness: float) -> Tensor:
            parts = [
                likelihood_slope(self.features(x) @ weight.T + bias, labels, sharpness)
                for x, labels in sample
            ]
            return looks.sum(sum(parts, weight.new_zeros(2)))

        self.state["sharpness"] = weight.new_tensor(fit_sharpness(slope))
        self.apply(model)

    def apply(self, model: SegmentationModel) -> None:
        """Let the solution of all steps so far score the classes."""
        weight, bias = self.solve()
        sharpness = self.state.get("sharpness", 1.0)
        described_by, expansion = self.described_by(model), self.state.get("expansion")
        model.solve_classes(described_by, weight * sharpness, bias * sharpness, expansion)

    def score(self, model: SegmentationModel, description: Tensor) -> Tensor | None:
        """Return what the solution so far scores (B,K,h,w), about 1 where a class is; None before the first one."""
        if model.closed_form is None:
            return None
        scores: Tensor = model.closed_form(description)
        return scores / self.state.get("sharpness", 1.0)

    def tell(self, model: SegmentationModel, looks: Looks, sums: Sums, first: int) -> None:
        """Say which classes from `first` on have no cell, and whose cells score higher as another class on average."""
        assert model.closed_form is not None
        weight, bias = model.closed_form.weight.double(), model.closed_form.bias.double()
        names = looks.class_names
        for c in range(first, len(sums.counts)):
            if sums.counts[c] == 0:
                looks.say(self.without_cells(names[c]))
                continue
            best = int((weight @ (sums.of_class[c] / sums.counts[c]) + bias).argmax())
            if best != c:
                looks.say(
                    f"cells of {names[c]} score higher as {names[best]} on average: these features do not tell the two "
                    "apart; try a backbone trained on such images, or a method that trains"
                )

    def without_cells(self, name: str) -> str:
        """Return what is said of a class that no cell shows."""
        return (
            f"no cell shows {name}: it will never be predicted; look at larger images (evaluate.short_side)"
        )


def join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return several pairs of cells and labels as one."""
    x, labels = map(torch.cat, zip(*parts, strict=True))
    return x, labels
