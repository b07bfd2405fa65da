"""Classifiers that grow by one head a step: rows of a 1x1, or heads with a 3x3 of their own."""

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


def make_head(in_channels: int, num_classes: int) -> nn.Sequential:
    """Return a 3x3 convolution, BatchNorm, ReLU, and a 1x1 convolution of one row a class."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, num_classes, kernel_size=1),
    )


class OwnHeads(nn.Module):
    """A head of its own for every step's classes, for the background and for the unknown class (SSUL's released code).

    in_channels: D. num_classes: classes of each step so far, background counted in the first. with_unknown: whether
    there is a class of what is none of them; it scores last. dropout: of the features that all heads see.
    """

    def __init__(
        self, in_channels: int, num_classes: list[int], with_unknown: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.background = make_head(in_channels, 1)
        counts = [num_classes[0] - 1, *num_classes[1:]]
        self.heads = nn.ModuleList(make_head(in_channels, count) for count in counts)
        self.unknown = make_head(in_channels, 1) if with_unknown else None

    @property
    def num_classes(self) -> list[int]:
        """Classes of each step so far, background counted in the first."""
        first, *later = (len(head.get_parameter("3.bias")) for head in self.heads)
        return [first + 1, *later]

    def grow(self, num_new: int, start: Start = "random") -> None:
        """Append a head of `num_new` classes; see `models.base.Start`. A copy is one of a whole head.

        Raises ValueError where the unknown class is to be copied and there is none.
        """
        rows = self.background.get_parameter("3.weight")
        head = make_head(rows.shape[1], num_new).to(rows).train(self.training)
        source = self.unknown if start == "unknown" else self.background
        if source is None:
            raise ValueError("new classes cannot start as the unknown class: this model has none")
        if start != "random":
            for module, copied in zip(list(head)[:-1], source, strict=False):
                module.load_state_dict(copied.state_dict())
            copy_first_row(source[-1], head[-1])
        self.heads.append(head)
        if start == "shared_background":
            with torch.no_grad():
                for shared in (self.background, head):
                    shared.get_parameter("3.bias").sub_(math.log(num_new + 1))

    def class_tokens(self) -> Tensor:
        """Return (K,D), the rows of all 1x1 convolutions; each sees the features of its own head."""
        heads = [self.background, *self.heads]
        return torch.cat([head.get_parameter("3.weight").flatten(1) for head in heads])

    def forward(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (B,K,h,w), or (B,K+1,h,w) with the unknown class last."""
        features = self.dropout(features)
        heads = [self.background, *self.heads, *([] if self.unknown is None else [self.unknown])]
        return torch.cat([head(features) for head in heads], dim=1)


def join_unknown(logits: Tensor) -> Tensor:
    """Return (B,K,…), the unknown class's score added to the background's: σ(z_0) + σ(z_unknown), as a logit.

    Where that exceeds 1, no class scores more; the logit is then the largest of all. logits: (B,K+1,…), the unknown
    class last.
    """
    score = (logits[:, :1].sigmoid() + logits[:, -1:].sigmoid()).clamp(min=torch.finfo(logits.dtype).tiny)
    inside = score.clamp(max=1 - torch.finfo(logits.dtype).eps)
    background = torch.where(score < 1, inside.log() - (-inside).log1p(), 1e4)
    return torch.cat([background, logits[:, 1:-1]], dim=1)


@torch.no_grad()
def copy_first_row(source: nn.Module, head: nn.Module) -> None:
    """Make every row of a 1x1 convolution the first one of another."""
    for name in ("weight", "bias"):
        row = source.get_parameter(name)[:1]
        head.get_parameter(name).copy_(row.expand_as(head.get_parameter(name)))
