"""A split of a data set that lies in files: pairs of image and mask, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
SPLITS = ("train", "val")


@dataclass(frozen=True)
class FileDataset:
    """One split of a data set.

    `classes` and `palette` are indexed by data set id, background at 0. `samples` maps an image id to its
    image and mask. With `background_is_void` (ADE20K) label 0 becomes 255 in evaluation.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    samples: dict[str, tuple[Path, Path]]
    background_is_void: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids, in the order of the data set's list."""
        return tuple(self.samples)

    def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
        """Image (H, W, 3) uint8 RGB and label (H, W) uint8 in data set ids.

        Raises:
            ValueError: a file cannot be decoded, or image and mask differ in size.
        """
        image_path, mask_path = self.samples[image_id]
        image, label = read_image(image_path), read_mask(mask_path)
        if image.shape[:2] != label.shape:
            raise ValueError(
                describe_size_mismatch(image_path, image.shape[1::-1], mask_path, label.shape[::-1])
            )
        return image, label

    def read_label(self, image_id: str) -> UInt8Array:
        """Label (H, W) uint8 in data set ids."""
        return read_mask(self.samples[image_id][1])


def read_image(path: Path) -> UInt8Array:
    """Image (H, W, 3) uint8 RGB, turned upright as its EXIF orientation says.

    Raises:
        ValueError: OpenCV cannot decode the file.
    """
    mmcv = _import_mmcv()
    import cv2

    try:
        image: UInt8Array = mmcv.imread(path, channel_order="rgb")
    except cv2.error as error:
        raise ValueError(f"{path}: not an image that OpenCV can decode; replace the file") from error
    return image


def read_mask(path: Path) -> UInt8Array:
    """Class ids (H, W) uint8 of a palette or a grey PNG.

    Raises:
        ValueError: the file is neither, or Pillow cannot decode it.
    """
    mmcv = _import_mmcv()
    try:
        # OpenCV's decoder turns a palette into colours; Pillow's keeps the indices.
        mask: npt.NDArray[Any] = mmcv.imread(path, flag="unchanged", backend="pillow")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a mask that Pillow can decode ({error}); replace the file") from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(
            f"{path}: a mask must be an 8-bit PNG with one channel (palette or grey) that holds class ids; "
            f"found shape {mask.shape} of {mask.dtype}"
        )
    return mask


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


def describe_size_mismatch(
    image_path: Path | str, image_size: tuple[int, ...], mask_path: Path | str, mask_size: tuple[int, ...]
) -> str:
    """The error for an image and a mask of different (width, height)."""
    return (
        f"{mask_path}: the mask is {mask_size[0]}x{mask_size[1]} (width x height), "
        f"but its image {image_path} is {image_size[0]}x{image_size[1]}; they must be equal"
    )


def check_split(split: str) -> None:
    """ValueError unless `split` is 'train' or 'val'."""
    if split not in SPLITS:
        raise ValueError(f"split: found {split!r}; allowed are {', '.join(SPLITS)}")


def list_files(folder: Path, suffixes: Collection[str], expected: str) -> dict[str, Path]:
    """Stem -> path of the files in `folder` with one of the (lower-case) suffixes, sorted.

    Hidden files are skipped. `expected` says the layout and what to do; errors end with it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two files share a stem.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are enough, and much faster for large folders
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder}: no such folder. {expected}") from None
    found: dict[str, Path] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if suffix.lower() not in suffixes or name.startswith("."):
            continue
        if stem in found:
            raise ValueError(
                f"{folder}: {found[stem].name} and {name} share the image id {stem!r}; remove one"
            )
        found[stem] = folder / name
    return found


def pair_samples(
    ids: Iterable[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    image_pattern: Path,
    mask_pattern: Path,
    expected: str,
) -> dict[str, tuple[Path, Path]]:
    """Image id -> (image, mask), in the order of `ids`.

    The patterns name a file for the errors, with ID in the place of the image id.

    Raises:
        FileNotFoundError: no ids at all, or some without an image or a mask.
    """
    ids = list(ids)
    if not ids:
        raise FileNotFoundError(
            f"{image_pattern.parent}: the split is empty, no {image_pattern.name}. {expected}"
        )
    for files, pattern, what in ((images, image_pattern, "image"), (masks, mask_pattern, "mask")):
        missing = [image_id for image_id in ids if image_id not in files]
        if missing:
            path = pattern.with_name(pattern.name.replace("ID", missing[0], 1))
            raise FileNotFoundError(
                f"{path}: this {what} is missing ({len(missing)} of {len(ids)} samples have none). {expected}"
            )
    return {image_id: (images[image_id], masks[image_id]) for image_id in ids}


def make_palette(num_classes: int) -> tuple[Colour, ...]:
    """The colour map of PASCAL VOC (as its development kit makes it): one RGB colour an id, black for 0."""

    def spread_bits(class_id: int, channel: int) -> int:
        return sum((class_id >> (3 * i + channel) & 1) << (7 - i) for i in range(8))

    return tuple((spread_bits(i, 0), spread_bits(i, 1), spread_bits(i, 2)) for i in range(num_classes))
