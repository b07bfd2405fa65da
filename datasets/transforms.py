"""Joint transforms of image and label, on uint8 (torchvision.transforms.v2)."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from utils.images import UInt8Array
from utils.labels import IGNORE_INDEX

ShortSide = int | Literal["crop", "own"]
"""Pixels to which an image's shorter side is scaled: those of the training crop, its own (not scaled), or a number."""


def to_tensors(image: UInt8Array, label: UInt8Array) -> tuple[Tensor, Tensor]:
    """(H,W,3) and (H,W) arrays to (3,H,W) and (1,H,W) uint8 tensors."""
    # Copied where an image decoder hands out read-only memory, which torch does not take.
    return torch.tensor(image).permute(2, 0, 1), torch.tensor(label)[None]


def resize_short_side(x: Tensor, size: int, interpolation: InterpolationMode) -> Tensor:
    """Scale (C,H,W) so that its shorter side is `size` pixels."""
    shape = list(short_side_shape(x.shape[-2:], size))
    return F.resize(x, shape, interpolation=interpolation, antialias=True)


@dataclass(frozen=True)
class TrainTransform:
    """Short side to the crop times a random scale, random crop, random flip.

    An image smaller than the crop lies anywhere in it; what lies outside is filled with `fill` (a colour,
    0..255) and labelled `pad_label`.
    """

    crop_size: int
    min_scale: float
    max_scale: float
    fill: tuple[float, ...]
    pad_label: int = IGNORE_INDEX

    def __call__(
        self, image: UInt8Array, label: UInt8Array, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return image (3,crop,crop) and label (crop,crop), uint8, drawn from `generator` alone.

        The colours of a pixel lie side by side in memory, as decoders and networks in channels_last have them.
        """
        scale, top, left, flip = torch.rand(4, generator=generator).tolist()
        short_side = round(self.crop_size * (self.min_scale + scale * (self.max_scale - self.min_scale)))
        shape = short_side_shape(image.shape[:2], short_side)
        height, width = (
            Window.draw(source, side, self.crop_size, position)
            for source, side, position in zip(image.shape, shape, (top, left), strict=False)
        )
        x = np.empty((self.crop_size, self.crop_size, 3), np.uint8)
        y = np.empty((self.crop_size, self.crop_size), np.uint8)
        if min(shape) < self.crop_size:
            x[0] = np.array([round(colour) for colour in self.fill], np.uint8)
            x[1:] = x[0]  # row by row, which is much faster than pixel by pixel
            y[:] = self.pad_label
        x[height.target, width.target] = resize_image(image, height, width)
        y[height.target, width.target] = resize_label(label, height, width)
        crop, crop_label = torch.from_numpy(x), torch.from_numpy(y)
        if flip < 0.5:
            crop, crop_label = crop.flip(1), crop_label.flip(1)
        return crop.permute(2, 0, 1), crop_label


class Window(NamedTuple):
    """What a crop shows of one side of an image that is resized: only `source` is read, not the whole image.

    source: pixels of the image as it is; side: what these are resized to; seen: which of that the crop shows; target:
    where in the crop that lies; nearest: the pixel of the image, (length of seen,), that lies nearest to each seen one.
    """

    source: slice
    side: int
    seen: slice
    target: slice
    nearest: npt.NDArray[np.intp]

    @classmethod
    def draw(cls, source: int, side: int, crop_size: int, position: float) -> "Window":
        """A crop at `position` (0 to 1) of `source` pixels that would be resized to `side`.

        The window is resized on the whole side's grid to within a fraction of a pixel, and exactly where the crop
        shows all of it.
        """
        first = int(position * (max(0, side - crop_size) + 1))
        before = int(position * (max(0, crop_size - side) + 1))
        length = min(side, crop_size)
        scale = side / source

        # What interpolation at the crop's edges looks at, with antialiasing.
        margin = 1 + math.ceil(1 / scale)
        low = max(0, math.floor(first / scale) - margin)
        high = min(source, math.ceil((first + length) / scale) + margin)
        low = _fitting_border(np.arange(low, max(0, low - 8) - 1, -1), scale)
        high = _fitting_border(np.arange(high, min(source, high + 8) + 1), scale)
        start, stop = round(low * scale), round(high * scale)
        centres = np.arange(first, first + length, dtype=np.float32) + np.float32(0.5)
        step = np.float32(source) / np.float32(side)  # as PyTorch computes 'nearest-exact'
        return cls(
            source=slice(low, high),
            side=stop - start,
            seen=slice(first - start, first - start + length),
            target=slice(before, before + length),
            nearest=np.minimum(centres * step, source - 1).astype(np.intp),
        )


def _fitting_border(borders: npt.NDArray[np.intp], scale: float) -> int:
    """The border between pixels that, scaled, falls best on a border of the resized ones."""
    scaled = borders * scale
    return int(borders[np.abs(scaled - np.rint(scaled)).argmin()])


def resize_image(image: UInt8Array, height: Window, width: Window) -> UInt8Array:
    """What the windows show of (H,W,3), resized bilinearly and with antialiasing."""
    source = image[height.source, width.source]
    if not (source.flags.c_contiguous and source.flags.writeable):  # what torch takes as it is
        source = source.copy()
    channels_first = torch.from_numpy(source).permute(2, 0, 1)
    shape = [height.side, width.side]
    resized = F.resize(channels_first, shape, interpolation=InterpolationMode.BILINEAR, antialias=True)
    pixels: UInt8Array = resized[:, height.seen, width.seen].permute(1, 2, 0).numpy()
    return pixels


def resize_label(label: UInt8Array, height: Window, width: Window) -> UInt8Array:
    """What the windows show of (H,W), resized by nearest neighbour."""
    # Looking up columns and then whole rows is much faster than looking up pixels.
    columns = label[height.source].take(width.nearest, axis=1)
    return columns.take(height.nearest - height.source.start, axis=0)


def short_side_shape(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Height and width of an image once its shorter side is `size` pixels."""
    height, width = shape
    short = min(height, width)
    return max(1, round(height * size / short)), max(1, round(width * size / short))


@dataclass(frozen=True)
class EvaluateTransform:
    """What validation sees: 'center_crop' (short side to the crop, centre crop, of image and label), 'whole'
    or 'sliding' (the image with its short side at the crop, at so many pixels, or as it is ('own'); the label at its
    own size)."""

    crop_size: int
    mode: str
    short_side: ShortSide = "crop"

    def __call__(self, image: UInt8Array, label: UInt8Array) -> tuple[Tensor, Tensor]:
        """Return image (3,H,W) and label (H',W'), uint8."""
        x, y = to_tensors(image, label)
        if self.short_side != "own":
            size = self.crop_size if self.short_side == "crop" else self.short_side
            x = resize_short_side(x, size, InterpolationMode.BILINEAR)
        if self.mode == "center_crop":
            y = resize_short_side(y, self.crop_size, InterpolationMode.NEAREST_EXACT)
            crop = [self.crop_size, self.crop_size]
            x, y = F.center_crop(x, crop), F.center_crop(y, crop)
        return x.contiguous(), y[0].contiguous()
