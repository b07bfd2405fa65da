"""SegACIL (arXiv 2412.10834): ridge regression on randomly expanded features of a trained base step, in closed form."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from losses.ridge import add_cells, expand, solve_sums
from methods.base import Looks
from methods.closed_form import Cells, ClosedForm, Sums
from models import SegmentationModel
from utils.config.section import NamedSection


class SegACIL(ClosedForm):
    """The network of the base step stays; its classifier becomes W = (A + γI)⁻¹ C over the cells of all steps.

    A = Σ φ φᵀ and C = Σ φ yᵀ over cells x of the feature grid, φ(x) = relu(W_e x) with W_e random and y one-hot. The
    solution is that of joint training on all cells as they were labelled when they were seen. Step 1 goes over the base
    step's images once more (re-alignment).

    Ours: a new column of C is 0, where the released recursion starts a class at random; pseudo-labels at every step;
    images are whole and as they are, not augmented; the base step is cross-entropy.
    """

    class Options(NamedSection):
        expansion: int = Field(2048, ge=1, le=2**15)
        """E, random features of a cell; the sums take 8·E² bytes. The authors' script has 8196."""
        gamma: float = Field(1.0, gt=0)
        """γ, the ridge penalty on every weight."""
        threshold: float | None = Field(0.8473, ge=0)
        """Score from which a background pixel of a later step takes the best old class as its label; σ(0.8473) is the
        released 0.7. Null takes the labels as given."""

    options: Options

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Draw the expansion before step 1; raise ValueError where it was drawn of another size."""
        size = self.options.expansion
        if "expansion" not in self.state:
            channels = self.num_channels(model.eval(), looks)
            expansion = torch.empty(size, channels).uniform_(-1, 1) / channels**0.5
            self.state["expansion"] = expansion.to(looks.device)
        found = len(self.state["expansion"])
        if found != size:
            raise ValueError(
                f"method.expansion: found {size}, but the sums of the steps so far are of {found} features; set it to "
                f"{found}, or begin with a base step"
            )
        super().begin_step(model, looks)

    def described_by(self, model: SegmentationModel) -> tuple[str, ...]:
        """Return the features before the classifier; those of a Segmenter's decoder would change with its classes."""
        return ("head",) if model.has_linear_classifier else ("backbone",)

    def features(self, x: Tensor) -> Tensor:
        """Return φ(x)."""
        return expand(x, self.state["expansion"])

    def label_cells(
        self, model: SegmentationModel, images: Tensor, labels: Tensor, description: Tensor, num_classes: int
    ) -> Tensor:
        """Return the label (B,h,w) of the pixel in each cell's corner, background filled where an old class is sure."""
        grid = description.shape[2:]
        cells = to_grid(labels, grid)
        scores = self.score(model, description)
        if scores is None or self.options.threshold is None:
            return cells
        best, known = model.to_image_size(scores, images.shape[2:]).max(dim=1)
        known = known.masked_fill(best < self.options.threshold, 0)
        return torch.where(cells == 0, to_grid(known, grid), cells)

    def add_up(self, looks: Looks, cells: Cells, num_channels: int, num_classes: int) -> Sums:
        """Return A and C over the cells of all ranks."""
        size = self.options.expansion
        gram, targets, counts = (
            torch.zeros(shape, dtype=torch.float64, device=looks.device)
            for shape in ((size, size), (size, num_classes), (num_classes,))
        )
        for x, labels in cells:
            add_cells(gram, targets, self.features(x), labels)
            counts += labels[labels < num_classes].bincount(minlength=num_classes)
        gram, targets, counts = map(looks.sum, (gram, targets, counts))
        return Sums(gram, targets, targets.T, counts)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return Wᵀ (K,E), and no constants."""
        weight = solve_sums(self.state["gram"], self.state["targets"], self.options.gamma).T.contiguous()
        return weight, weight.new_zeros(len(weight))


def to_grid(labels: Tensor, grid: torch.Size) -> Tensor:
    """Return labels (B,H,W) at the feature grid (B,h,w), by nearest neighbour."""
    # Floating point because interpolate has no integer kernel; class ids are exact in it.
    return F.interpolate(labels[:, None].float(), size=tuple(grid))[:, 0].long()
