"""Joint transforms of image and label, on uint8 (torchvision.transforms.v2)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datasets.files import UInt8Array
from datasets.tasks import IGNORE_INDEX


def to_tensors(image: UInt8Array, label: UInt8Array) -> tuple[Tensor, Tensor]:
    """(H,W,3) and (H,W) arrays to (3,H,W) and (1,H,W) uint8 tensors."""
    # Copied where an image decoder hands out read-only memory, which torch does not take.
    return torch.tensor(image).permute(2, 0, 1), torch.tensor(label)[None]


def resize_short_side(x: Tensor, size: int, interpolation: InterpolationMode) -> Tensor:
    """Scale (C,H,W) so that its shorter side is `size` pixels."""
    height, width = x.shape[-2:]
    short = min(height, width)
    shape = [max(1, round(height * size / short)), max(1, round(width * size / short))]
    return F.resize(x, shape, interpolation=interpolation, antialias=True)


@dataclass(frozen=True)
class TrainTransform:
    """Short side to the crop times a random scale, random crop, random flip.

    An image smaller than the crop lies anywhere in it; what lies outside is filled with `fill` (the backbone's
    mean colour, 0..255) and labelled `pad_label`.
    """

    crop_size: int
    min_scale: float
    max_scale: float
    fill: tuple[float, ...]
    pad_label: int = IGNORE_INDEX

    def __call__(
        self, image: UInt8Array, label: UInt8Array, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return image (3,crop,crop) and label (crop,crop), uint8, drawn from `generator` alone."""
        scale, top, left, flip = torch.rand(4, generator=generator).tolist()
        short_side = round(self.crop_size * (self.min_scale + scale * (self.max_scale - self.min_scale)))
        x, y = to_tensors(image, label)
        x = resize_short_side(x, short_side, InterpolationMode.BILINEAR)
        y = resize_short_side(y, short_side, InterpolationMode.NEAREST_EXACT)
        missing = [max(0, self.crop_size - side) for side in x.shape[-2:]]
        if any(missing):
            above, before = int(top * (missing[0] + 1)), int(left * (missing[1] + 1))
            padding = [before, above, missing[1] - before, missing[0] - above]
            x = F.pad(x, padding, fill=[round(colour) for colour in self.fill])
            y = F.pad(y, padding, fill=self.pad_label)
        first_row = int(top * (x.shape[-2] - self.crop_size + 1))
        first_column = int(left * (x.shape[-1] - self.crop_size + 1))
        x = F.crop(x, first_row, first_column, self.crop_size, self.crop_size)
        y = F.crop(y, first_row, first_column, self.crop_size, self.crop_size)
        if flip < 0.5:
            x, y = F.horizontal_flip(x), F.horizontal_flip(y)
        return x.contiguous(), y[0].contiguous()


@dataclass(frozen=True)
class EvaluateTransform:
    """What validation sees: 'center_crop' (short side to the crop, centre crop, of image and label), 'whole'
    or 'sliding' (the image with its short side at the crop; the label at its own size)."""

    crop_size: int
    mode: str

    def __call__(self, image: UInt8Array, label: UInt8Array) -> tuple[Tensor, Tensor]:
        """Return image (3,H,W) and label (H',W'), uint8."""
        x, y = to_tensors(image, label)
        x = resize_short_side(x, self.crop_size, InterpolationMode.BILINEAR)
        if self.mode == "center_crop":
            y = resize_short_side(y, self.crop_size, InterpolationMode.NEAREST_EXACT)
            size = [self.crop_size, self.crop_size]
            x, y = F.center_crop(x, size), F.center_crop(y, size)
        return x.contiguous(), y[0].contiguous()
