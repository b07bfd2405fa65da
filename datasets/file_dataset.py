"""A split of a data set that lies in files: pairs of image and mask, and how they are read."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from datasets.long_side import reduce_image, reduce_label
from datasets.masks import MaskCoding, read_mask
from utils.errors import DataError
from utils.images import (
    MAX_PIXELS,
    UNDECODABLE,
    Colour,
    UInt8Array,
    describe_too_large,
    describe_undecodable,
    read_bytes,
)

MAX_ASPECT = 100
"""A line of one pixel's height would be scaled to gigabytes."""


@dataclass(frozen=True)
class FileDataset:
    """One split of a data set.

    `classes` and `palette` are indexed by data set id, background at 0. `samples` maps an image id to its
    image and mask. With `background_is_void` (ADE20K) label 0 becomes 255 in evaluation. `mask_coding`: what the
    pixels of masks mean; None: the data set id itself. `long_side`: what larger images and masks are reduced to on
    reading. `is_part`: whether the samples are only some of the split's. `remarks`: lines about its
    files, such as those that are left out. `saliency`: folder with a mask of what is salient for each sample.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    samples: dict[str, tuple[Path, Path]]
    background_is_void: bool = False
    mask_coding: MaskCoding | None = None
    long_side: int | None = None
    is_part: bool = False
    remarks: tuple[str, ...] = ()
    saliency: Path | None = None

    @property
    def coding(self) -> MaskCoding:
        """What the pixels of masks mean."""
        return self.mask_coding or MaskCoding(tuple(range(len(self.classes))))

    @property
    def label_ids(self) -> frozenset[int]:
        """Data set ids that labels can show, 255 left out; a data set without a true background lacks 0."""
        return self.coding.label_ids

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids, in the order of the data set's list."""
        return tuple(self.samples)

    def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
        """Image (H, W, 3) uint8 RGB and label (H, W) uint8 in data set ids, reduced to the long side.

        Raises:
            DataError: a file cannot be decoded, image and mask differ in size, or the mask holds an id or a colour
                that the data set has not.
            OSError: a file cannot be opened.
        """
        image_path, mask_path = self.samples[image_id]
        image, pixels = read_image(image_path), read_mask(mask_path, self.coding)
        check_size(image_path, image, mask_path, pixels)
        label = self.coding.decode(mask_path, pixels)
        return reduce_image(image, self.long_side), reduce_label(label, self.long_side)

    def read_salient(self, image_id: str) -> UInt8Array:
        """Mask (H, W) uint8, other than 0 where an image is salient, reduced as labels are; raises as `read` does."""
        assert self.saliency is not None
        return reduce_label(read_mask(self.saliency / f"{image_id}.png"), self.long_side)

    def read_label(self, image_id: str) -> UInt8Array:
        """Label (H, W) uint8 in data set ids, reduced to the long side."""
        mask_path = self.samples[image_id][1]
        label = self.coding.decode(mask_path, read_mask(mask_path, self.coding))
        return reduce_label(label, self.long_side)


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Image (H, W, 3) uint8 RGB, turned upright as its EXIF orientation says.

    Raises:
        DataError: OpenCV cannot decode the file, it is cut short, or has more pixels than `max_pixels`.
        OSError: it cannot be opened.
    """
    mmcv = _import_mmcv()
    import cv2

    content = read_bytes(path)
    if not content:
        raise DataError(f"{path}: not an image that OpenCV can decode (the file is empty); replace the file")
    problem = _describe_size_in_header(content, max_pixels)
    if problem is not None:
        raise DataError(f"{path}: {problem}")
    if content.startswith(b"GIF8") or content[4:12] in (b"ftypavif", b"ftypavis"):
        return _decode_with_pillow(path, content)
    # Some versions of OpenCV fill what a cut JPEG lacks with grey and say nothing.
    if _is_cut_jpeg(content):
        raise DataError(
            f"{path}: not an image that OpenCV can decode (the JPEG is cut short); replace the file"
        )
    try:
        image: UInt8Array = mmcv.imfrombytes(content, channel_order="rgb")
    except cv2.error as error:
        raise DataError(f"{path}: not an image that OpenCV can decode; replace the file") from error
    return image


def _decode_with_pillow(path: Path, content: bytes) -> UInt8Array:
    """Formats that not every OpenCV reads: the first frame of a GIF, and AVIF where Pillow has it."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UNDECODABLE as error:
        raise DataError(describe_undecodable(path, "an image", error)) from error


def _describe_size_in_header(content: bytes, max_pixels: int) -> str | None:
    """What is wrong with the size that an image claims, before a pixel takes memory; None where nothing is known."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return describe_too_large(image.size, max_pixels)
    except Image.DecompressionBombError as error:
        return f"{error}; cut it into tiles, its mask alike, or scale both down"
    except UNDECODABLE:  # OpenCV says more
        return None


def read_sound_image(path: Path) -> UInt8Array:
    """What `read_image` gives, with libjpeg's warnings of damaged data as errors: it shows grey or noise there."""
    # OpenCV passes these warnings on nowhere but on the process's stderr.
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
            try:
                image = read_image(path)
            finally:
                os.dup2(kept, 2)
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
    finally:
        os.close(kept)
    warnings = [line.strip() for line in lines if "JPEG" in line]
    if warnings:
        raise DataError(
            f"{path}: the JPEG is damaged ({warnings[0]}); a part of it shows grey or noise: replace the file"
        )
    return image


def _is_cut_jpeg(content: bytes) -> bool:
    """Whether the last scan of a JPEG (from marker FFDA on) misses the end marker (FFD9)."""
    if content.endswith(b"\xff\xd9") or not content.startswith(b"\xff\xd8"):  # told without a search
        return False
    return b"\xff\xd9" not in content[max(0, content.rfind(b"\xff\xda")) :]


def check_libraries() -> None:
    """Raise ImportError, saying what to install, where this machine cannot read images."""
    _import_mmcv()
    import cv2  # noqa: F401


def _import_mmcv() -> Any:
    """mmcv, imported late so that data sets without files need no OpenCV."""
    try:
        import mmcv
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reading images needs mmcv ({error}): `pip install -r requirements.txt`"
        ) from error
    except ImportError as error:
        raise ImportError(
            f"OpenCV cannot be loaded ({error}): `apt-get install libgl1 libglib2.0-0`, or "
            "`pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless`"
        ) from error
    return mmcv


def check_size(image_path: Path, image: UInt8Array, mask_path: Path, mask: UInt8Array) -> None:
    """Raise DataError where an image and its mask differ in size or are too long and thin to be scaled."""
    problem = describe_size(image_path, image.shape[1::-1], mask_path, mask.shape[1::-1])
    if problem is not None:
        raise DataError(problem)


def describe_size(
    image_path: Path | str, image_size: tuple[int, ...], mask_path: Path | str, mask_size: tuple[int, ...]
) -> str | None:
    """What is wrong with the (width, height) of an image, turned upright, and its mask, if anything."""
    if image_size != mask_size:
        return describe_size_mismatch(image_path, image_size, mask_path, mask_size)
    return describe_aspect(image_path, image_size)


def describe_aspect(image_path: Path | str, image_size: tuple[int, ...]) -> str | None:
    """What is wrong with the (width, height) of an image that is too long and thin to be scaled."""
    if max(image_size) > MAX_ASPECT * min(image_size):
        return (
            f"{image_path}: the image is {image_size[0]}x{image_size[1]} (width x height); a side may be at most "
            f"{MAX_ASPECT} times the other, because the shorter one is scaled to the crop; cut or remove it"
        )
    return None


def describe_size_mismatch(
    image_path: Path | str, image_size: tuple[int, ...], mask_path: Path | str, mask_size: tuple[int, ...]
) -> str:
    """The error for an image (turned upright) and a mask of different (width, height)."""
    text = (
        f"{mask_path}: the mask is {mask_size[0]}x{mask_size[1]} (width x height), "
        f"but its image {image_path} is {image_size[0]}x{image_size[1]}; they must be equal"
    )
    if tuple(mask_size) == tuple(image_size[::-1]):
        text += (
            " (an image is turned upright as its EXIF orientation says, a mask is taken as it lies: if it was "
            "drawn on the image as stored, turn the mask)"
        )
    return text
