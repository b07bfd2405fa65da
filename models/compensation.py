"""Representation compensation: convolutions of two branches, one of which remembers (RCIL, arXiv 2203.05402)."""

import copy
from collections.abc import Iterator, Sequence

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn


class TwoBranches(nn.Module):
    """½ N_1(x) + ½ N_2(x), N_i being a convolution and its BatchNorm; both start as the pair that they replace.

    In training one random number a channel, for all images and cells of a pass, lets a share `drop` of the channels be
    that of one branch alone, each of the two as often. After `merge`, the first branch is frozen and remembers.
    """

    num_merges: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, drop: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv, copy.deepcopy(conv)])
        self.norms = nn.ModuleList([norm, copy.deepcopy(norm)])
        self.drop = drop
        self.register_buffer("num_merges", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True))
        if not self.training or self.drop == 0:
            return 0.5 * first + 0.5 * second
        share = gates(torch.rand(1, first.shape[1], 1, 1, device=x.device), self.drop).to(first.dtype)
        return share * first + (1 - share) * second

    def train(self, mode: bool = True) -> "TwoBranches":
        """Set the mode; a branch that remembers keeps its statistics."""
        super().train(mode)
        if self.num_merges:
            self.norms[0].eval()
        return self

    @torch.no_grad()
    def merge(self) -> None:
        """Make the first branch both branches' mean, and freeze it; the second stays as it is, and learns.

        Its BatchNorm changes nothing but by its shift: mean 0, variance 1 − ε, scale 1.
        """
        convs, norms = ([*modules] for modules in (self.convs, self.norms))
        weight, shift = merge_branches(
            [conv.get_parameter("weight") for conv in convs],
            [norm.get_parameter("weight") for norm in norms],
            [norm.get_parameter("bias") for norm in norms],
            [norm.get_buffer("running_mean") for norm in norms],
            [(norm.get_buffer("running_var") + norm.eps).sqrt() for norm in norms],
        )
        convs[0].get_parameter("weight").copy_(weight)
        norms[0].get_parameter("weight").fill_(1)
        norms[0].get_parameter("bias").copy_(shift)
        norms[0].get_buffer("running_mean").zero_()
        norms[0].get_buffer("running_var").fill_(1 - norms[0].eps)
        self.num_merges += 1
        convs[0].requires_grad_(False)
        norms[0].eval().requires_grad_(False)


def gates(r: Tensor, drop: float) -> Tensor:
    """Return the first branch's share of every channel, 1, 0 or ½, by random numbers r in [0,1)."""
    return torch.where(r < drop / 2, 1.0, torch.where(r < drop, 0.0, 0.5))


def merge_branches(
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    means: Sequence[Tensor],
    deviations: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one convolution that gives the branches' average, Σ ½ (γ (W x − μ) / σ + β).

    weights: (O,I,k,k) of each branch; scales γ, shifts β, means μ and deviations σ: (O,). Computed in float64.
    """
    factors = [0.5 * gamma.double() / sigma.double() for gamma, sigma in zip(scales, deviations, strict=True)]
    weight = sum(f.view(-1, 1, 1, 1) * w.double() for f, w in zip(factors, weights, strict=True))
    bias = sum(
        0.5 * beta.double() - f * mu.double() for f, beta, mu in zip(factors, shifts, means, strict=True)
    )
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return weight.to(weights[0].dtype), bias.to(shifts[0].dtype)


def compensate_bottlenecks(backbone: nn.Module, name: str, drop: float) -> None:
    """Give the 3x3 convolutions of a ResNet's bottlenecks two branches; raises ValueError where there are none."""
    found = [block for block in backbone.modules() if isinstance(block, Bottleneck)]
    for block in found:
        assert isinstance(block.conv2, nn.Conv2d)
        assert isinstance(block.bn2, nn.BatchNorm2d)
        # By name, as timm declares which classes stand there.
        for name_of, module in (("conv2", TwoBranches(block.conv2, block.bn2, drop)), ("bn2", nn.Identity())):
            block.add_module(name_of, module)
    if not found:
        raise ValueError(
            f"model.compensation: '{name}' has no bottleneck of timm's ResNets, whose 3x3 convolution would get a "
            "second branch; choose a backbone such as resnet50 or resnet101, or set it to false"
        )


def compensate_sequence(branch: nn.Sequential, drop: float) -> None:
    """Give a convolution with a BatchNorm behind it, the first two modules of a sequence, two branches."""
    conv, norm = branch[0], branch[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    branch[0], branch[1] = TwoBranches(conv, norm, drop), nn.Identity()


def two_branches(model: nn.Module) -> Iterator[TwoBranches]:
    """Yield the convolutions of two branches, if any."""
    return (module for module in model.modules() if isinstance(module, TwoBranches))
