"""A classifier that is solved, not trained: one 1x1 convolution over maps that describe each cell."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClosedFormClassifier(nn.Module):
    """Scores (B,K,h,w), float32, of descriptions (B,C,h,w).

    described_by: names of the maps and of their contexts (`SegmentationModel.describe`), in the order of the channels.
    weight: (K,F) and bias: (K,), of the F features of a cell. expansion: W (F,C), by which these are relu(W x) of a
    description x; None where they are x itself.
    """

    weight: Tensor
    bias: Tensor
    expansion: Tensor | None

    def __init__(
        self, described_by: Sequence[str], weight: Tensor, bias: Tensor, expansion: Tensor | None = None
    ) -> None:
        super().__init__()
        self.described_by = tuple(described_by)
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("expansion", None if expansion is None else expansion.float())

    def forward(self, description: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,K,h,w)."""
        with torch.autocast(description.device.type, enabled=False):
            x = description.float()
            if self.expansion is not None:
                x = F.conv2d(x, self.expansion[:, :, None, None]).relu()
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)


def join_maps(maps: Mapping[str, Sequence[Tensor]], described_by: Sequence[str]) -> Tensor:
    """Return the maps named in `described_by`, (B,C,h,w) each, as one (B,F,h,w), then what its contexts add.

    Contexts: 'neighbours', the mean of each 3x3 cells; 'image', the mean of all cells.
    """
    own = torch.cat([x for name in described_by if name not in CONTEXTS for x in maps[name]], dim=1)
    joined = [own]
    if "neighbours" in described_by:
        joined.append(F.avg_pool2d(own, 3, stride=1, padding=1, count_include_pad=False))
    if "image" in described_by:
        joined.append(own.mean(dim=(2, 3), keepdim=True).expand_as(own))
    return torch.cat(joined, dim=1)


def pool_to_grid(x: Tensor, factor: int, grid: tuple[int, int]) -> Tensor:
    """Return the means (B,C,h,w) of factor x factor cells of a finer map (B,C,h',w'), of what there is at its borders.

    A pooling of fixed kernel, not to a size: exported models take images of any.
    """
    if factor > 1:
        x = F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False)
    return x[:, :, : grid[0], : grid[1]]


CONTEXTS = ("neighbours", "image")
"""What can be added to the description of a cell beside the maps of a model."""
