"""A background that steps only lower: its score is the base step's and residuals of later steps (BARM, 2407.09838)."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class ResidualBackground(nn.Module):
    """Of each incremental step a residual row, and with `has_ears` a copy of the shared convolution, its ear.

    A step's residual and classes are scored on its ear, on the shared features without ears. channels: D.
    """

    def __init__(self, channels: int, has_ears: bool) -> None:
        super().__init__()
        self.channels = channels
        self.has_ears = has_ears
        self.rows = nn.ModuleList()
        self.ears = nn.ModuleList()

    def grow(self, shared: nn.Module) -> None:
        """Add a step; its ear starts as the shared convolution, BatchNorm's statistics and affine among it."""
        weight = next(shared.parameters())
        self.rows.append(nn.Conv2d(self.channels, 1, kernel_size=1, device=weight.device, dtype=weight.dtype))
        if self.has_ears:
            self.ears.append(copy.deepcopy(shared).requires_grad_(True))

    def newest_parameters(self) -> list[nn.Parameter]:
        """Return what the newest step trains, none before there is one; an ear's BatchNorm stays as it was copied."""
        newest = [*self.rows[-1:], *self.newest_ear()]
        return [parameter for module in newest for parameter in module.parameters()]

    def newest_ear(self) -> list[nn.Module]:
        """Return the layers of the newest step's ear but its BatchNorm, none where there is none."""
        layers = self.ears[-1].modules() if len(self.ears) else ()
        return [layer for layer in layers if isinstance(layer, nn.Conv2d)]

    def forward(
        self, x: Tensor, shared: Tensor, heads: Iterable[nn.Module]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the features (B,D,h,w) that each ear gives, the shared ones first, and each step's raw scores.

        x: what the shared convolution sees; shared: the features that it gives; heads: a 1x1 convolution a step. Raw
        scores are (B,1 + new classes,h,w): the base step's background or a residual, and the classes.
        """
        features = shared, *(ear(x) for ear in self.ears)
        first, *later = heads
        outputs = [first(shared)]
        for index, (row, head) in enumerate(zip(self.rows, later, strict=True), start=1):
            seen = features[index] if self.has_ears else shared
            outputs.append(torch.cat([row(seen), head(seen)], dim=1))
        # Under autocast they are in half precision.
        wide = torch.promote_types(outputs[0].dtype, torch.float32)
        return features, tuple(output.to(wide) for output in outputs)


def join_outputs(outputs: Sequence[Tensor]) -> Tensor:
    """Return scores (B,K,h,w) of all classes from raw ones: background is h_0[0] + Σ min(r_i, 0)."""
    residuals = (
        torch.stack([output[:, :1].clamp(max=0) for output in outputs[1:]]).sum(dim=0) if outputs[1:] else 0
    )
    return torch.cat([outputs[0][:, :1] + residuals, *(output[:, 1:] for output in outputs)], dim=1)
