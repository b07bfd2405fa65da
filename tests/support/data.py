"""Tiny data sets on disk, in the layouts that the file-based data sets read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from utils.images import make_palette

Mask = npt.NDArray[np.uint8]


def stripes(*class_ids: int, height: int = 16, width: int = 16) -> Mask:
    """A mask (height, width) uint8 of equally wide vertical stripes, one for each id, from left to right."""
    columns = np.array(class_ids, dtype=np.uint8)[np.arange(width) * len(class_ids) // width]
    return np.tile(columns, (height, 1))


def paint(mask: Mask, seed: int = 0) -> npt.NDArray[np.uint8]:
    """An image (H, W, 3) uint8 whose pixels have their class's VOC colour and a little noise."""
    colours = np.array(make_palette(256), dtype=np.int64)[mask]
    noise = np.random.default_rng(seed).integers(-10, 11, colours.shape)
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def write_mask(path: Path, mask: Mask, mode: str = "P") -> None:
    """Writes a PNG of indices, with a palette (mode 'P') or as plain grey ('L')."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if mode == "P":
        # Keeps the indices; PIL's convert("P") would look for the nearest colours.
        image.putpalette(np.array(make_palette(256), dtype=np.uint8).tobytes())
    image.save(path)


def write_sample(image_path: Path, mask_path: Path, mask: Mask, mode: str = "P") -> None:
    """Writes a mask and an image painted after it; the same id always gives the same image."""
    write_mask(mask_path, mask, mode)
    image_path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(mask, seed=zlib.crc32(image_path.stem.encode()))).save(image_path, quality=95)


def write_voc(
    root: Path,
    train: Mapping[str, Mask],
    val: Mapping[str, Mask],
    train_list: str | None = "ImageSets/Segmentation/train_aug.txt",
    list_pairs: bool = False,
    mode: str = "P",
) -> Path:
    """Writes VOC below root/VOCdevkit/VOC2012 from masks by image id, and gives that folder back.

    `train_list` None leaves out train_aug.txt; `list_pairs` writes pairs of paths in it instead of bare ids.
    """
    voc = root / "VOCdevkit" / "VOC2012"
    for image_id, mask in {**train, **val}.items():
        image_path = voc / "JPEGImages" / f"{image_id}.jpg"
        write_sample(image_path, voc / "SegmentationClassAug" / f"{image_id}.png", mask, mode)
    lists = {"ImageSets/Segmentation/val.txt": list(val)}
    if train_list is not None:
        pairs = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in train]
        lists[train_list] = pairs if list_pairs else list(train)
    for name, lines in lists.items():
        (voc / name).parent.mkdir(parents=True, exist_ok=True)
        (voc / name).write_text("".join(f"{line}\n" for line in lines))
    return voc


def write_ade(root: Path, train: Mapping[str, Mask], val: Mapping[str, Mask]) -> Path:
    """Writes ADE20K below root/ADEChallengeData2016 from masks by image id, and gives that folder back."""
    ade = root / "ADEChallengeData2016"
    for folder, masks in (("training", train), ("validation", val)):
        for image_id, mask in masks.items():
            image_path = ade / "images" / folder / f"{image_id}.jpg"
            write_sample(image_path, ade / "annotations" / folder / f"{image_id}.png", mask, mode="L")
    return ade


def write_cityscapes(
    root: Path, train: Mapping[str, Mask], val: Mapping[str, Mask], kind: str = "labelIds"
) -> Path:
    """Writes Cityscapes in `root` from masks of its numbers by image id (CITY_000000_000019). Gives `root` back."""
    for split, masks in (("train", train), ("val", val)):
        for image_id, mask in masks.items():
            city = image_id.partition("_")[0]
            image_path = root / "leftImg8bit" / split / city / f"{image_id}_leftImg8bit.png"
            mask_folder = root / "gtFine" / split / city
            write_sample(image_path, mask_folder / f"{image_id}_gtFine_{kind}.png", mask, mode="L")
    return root


def write_folder(
    root: Path,
    classes: Sequence[str],
    train: Mapping[str, Mask],
    val: Mapping[str, Mask],
    suffix: str = ".jpg",
) -> Path:
    """Writes a folder data set in `root`; `classes` are the lines of classes.txt. Gives `root` back."""
    for split, masks in (("train", train), ("val", val)):
        for image_id, mask in masks.items():
            image_path = root / "images" / split / f"{image_id}{suffix}"
            write_sample(image_path, root / "masks" / split / f"{image_id}.png", mask)
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{line}\n" for line in classes))
    return root


def cut_short(path: Path) -> None:
    """Take the last bytes of a file away: its header stays whole."""
    path.write_bytes(path.read_bytes()[:-30])
