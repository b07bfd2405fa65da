"""A classifier that is solved, not trained: one 1x1 convolution over maps that describe each cell."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClosedFormClassifier(nn.Module):
    """Scores (B,K,h,w), float32, of descriptions (B,F,h,w).

    described_by: names of the maps and of their contexts (`SegmentationModel.describe`), in the order of the channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, described_by: Sequence[str], weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.described_by = tuple(described_by)
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, description: Tensor) -> Tensor:
        """(B,F,h,w) -> (B,K,h,w)."""
        with torch.autocast(description.device.type, enabled=False):
            return F.conv2d(description.float(), self.weight[:, :, None, None], self.bias)


def join_maps(
    maps: Mapping[str, Sequence[Tensor]], described_by: Sequence[str], grid: tuple[int, int]
) -> Tensor:
    """Return the maps named in `described_by` as one (B,F,h,w), then what its contexts add.

    maps: (B,C,h',w') by name, of any size; those of another size are averaged to the grid (h,w). Contexts:
    'neighbours', the mean of each 3x3 cells; 'image', the mean of all cells.
    """
    named = [x for name in described_by if name not in CONTEXTS for x in maps[name]]
    own = torch.cat([x if x.shape[2:] == grid else F.adaptive_avg_pool2d(x, grid) for x in named], dim=1)
    joined = [own]
    if "neighbours" in described_by:
        joined.append(F.avg_pool2d(own, 3, stride=1, padding=1, count_include_pad=False))
    if "image" in described_by:
        joined.append(own.mean(dim=(2, 3), keepdim=True).expand_as(own))
    return torch.cat(joined, dim=1)


CONTEXTS = ("neighbours", "image")
"""What can be added to the description of a cell beside the maps of a model."""
