"""A 1x1 classifier that grows by one head a step."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GrowingClassifier(nn.Module):
    """One 1x1 convolution a step, applied as one; row k of all heads together is the token of class k.

    in_channels: D. num_classes: classes of each step so far, background counted in the first.
    has_auxiliary: keep one row more, of no class, as which new classes start (DKD, arXiv 2210.05941).
    """

    def __init__(self, in_channels: int, num_classes: list[int], has_auxiliary: bool = False) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(in_channels, count, kernel_size=1) for count in num_classes)
        self.auxiliary = nn.Conv2d(in_channels, 1, kernel_size=1) if has_auxiliary else None

    @property
    def num_classes(self) -> list[int]:
        """Classes of each step so far, background counted in the first."""
        return [len(head.get_parameter("bias")) for head in self.heads]

    def grow(self, num_new: int, weight_transfer: bool, balanced_bias: bool = False) -> None:
        """Append a head of `num_new` classes, copies of the auxiliary row if there is one, else of the background's
        if `weight_transfer`.

        balanced_bias: see `SegmentationModel.grow`.
        """
        weight = self.class_tokens()
        head = nn.Conv2d(weight.shape[1], num_new, kernel_size=1, device=weight.device, dtype=weight.dtype)
        if self.auxiliary is not None:
            _copy_first_row(self.auxiliary, head)
        elif weight_transfer:
            _copy_first_row(self.heads[0], head)
        self.heads.append(head)
        if balanced_bias:
            with torch.no_grad():
                for shared in (self.heads[0].get_parameter("bias")[:1], head.get_parameter("bias")):
                    shared.sub_(math.log(num_new + 1))

    def set_auxiliary(self, is_wanted: bool) -> None:
        """Add an auxiliary row, a copy of the background's, or take it away."""
        self.auxiliary = None
        if is_wanted:
            weight = self.class_tokens()
            self.auxiliary = nn.Conv2d(weight.shape[1], 1, 1, device=weight.device, dtype=weight.dtype)
            _copy_first_row(self.heads[0], self.auxiliary)

    def auxiliary_logits(self, features: Tensor) -> Tensor | None:
        """(B,D,h,w) -> (B,1,h,w), if there is an auxiliary row. No gradient reaches the features."""
        return None if self.auxiliary is None else self.auxiliary(features.detach())

    def class_tokens(self) -> Tensor:
        """Return (K,D), the classifier's rows."""
        return torch.cat([head.get_parameter("weight").flatten(1) for head in self.heads])

    def forward(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (B,K,h,w)."""
        return F.conv2d(features, self.class_tokens()[:, :, None, None], self._bias())

    def _bias(self) -> Tensor:
        """(K,)."""
        return torch.cat([head.get_parameter("bias") for head in self.heads])


@torch.no_grad()
def _copy_first_row(source: nn.Module, head: nn.Module) -> None:
    """Make every row of a head the first one of another."""
    for name in ("weight", "bias"):
        row = source.get_parameter(name)[:1]
        head.get_parameter(name).copy_(row.expand_as(head.get_parameter(name)))
