"""A 1x1 classifier that grows by one head a step."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Start


class GrowingClassifier(nn.Module):
    """One 1x1 convolution a step, applied as one; row k of all heads together is the token of class k.

    in_channels: D. num_classes: classes of each step so far, background counted in the first.
    """

    def __init__(self, in_channels: int, num_classes: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(in_channels, count, kernel_size=1) for count in num_classes)

    @property
    def num_classes(self) -> list[int]:
        """Classes of each step so far, background counted in the first."""
        return [len(head.get_parameter("bias")) for head in self.heads]

    def grow(self, num_new: int, start: Start = "random") -> None:
        """Append a head of `num_new` classes; see `models.base.Start`."""
        weight = self.class_tokens()
        head = nn.Conv2d(weight.shape[1], num_new, kernel_size=1, device=weight.device, dtype=weight.dtype)
        if start != "random":
            copy_first_row(self.heads[0], head)
        self.heads.append(head)
        if start == "shared_background":
            with torch.no_grad():
                for shared in (self.heads[0].get_parameter("bias")[:1], head.get_parameter("bias")):
                    shared.sub_(math.log(num_new + 1))

    def class_tokens(self) -> Tensor:
        """Return (K,D), the classifier's rows."""
        return torch.cat([head.get_parameter("weight").flatten(1) for head in self.heads])

    def forward(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (B,K,h,w)."""
        return F.conv2d(features, self.class_tokens()[:, :, None, None], self.biases())

    def biases(self) -> Tensor:
        """Return (K,), those of the rows."""
        return torch.cat([head.get_parameter("bias") for head in self.heads])

    @torch.no_grad()
    def set_rows(self, weight: Tensor, bias: Tensor) -> None:
        """Put rows (K,D) and biases (K,) of all classes into the heads."""
        counts = self.num_classes
        for head, rows, biases in zip(self.heads, weight.split(counts), bias.split(counts), strict=True):
            head.get_parameter("weight").copy_(rows[:, :, None, None])
            head.get_parameter("bias").copy_(biases)


@torch.no_grad()
def copy_first_row(source: nn.Module, head: nn.Module) -> None:
    """Make every row of a 1x1 convolution the first one of another."""
    for name in ("weight", "bias"):
        row = source.get_parameter(name)[:1]
        head.get_parameter(name).copy_(row.expand_as(head.get_parameter(name)))
