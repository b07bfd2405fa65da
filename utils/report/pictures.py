"""The files of panels/: validation images with their ground truth and the prediction of every step.

panels/IMAGE_ID/ holds image.jpg, ground_truth.png and step_{t}.png, of one size; a mask's pixel is a class id in
learning order, 255 what is not evaluated.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.errors import DataError
from utils.files import write_atomic
from utils.images import UNDECODABLE, Colour, UInt8Array, describe_undecodable, open_mask

IGNORED_COLOUR = (224, 224, 192)
"""The cream in which VOC draws its void."""


class Panel(NamedTuple):
    """An image (JPEG), its ground truth (H,W) and the prediction (H,W) of every step, None where none was kept."""

    image_id: str
    image: bytes
    ground_truth: UInt8Array
    predictions: list[UInt8Array | None]


def write_image(path: Path, pixels: UInt8Array) -> None:
    """Write an image (H,W,3) as JPEG; raises SaveError."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    write_atomic(path, buffer.getvalue())


def write_mask(path: Path, class_ids: UInt8Array, colours: Sequence[Colour]) -> None:
    """Write class ids (H,W) as a PNG whose palette shows `colours` (by class id); raises SaveError."""
    palette = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    palette[: len(colours)] = colours
    image = Image.fromarray(class_ids)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_atomic(path, buffer.getvalue())


def read_panels(run_dir: Path, num_steps: int) -> tuple[list[Panel], list[str]]:
    """Read what a run has kept of its first `num_steps` steps; second come the problems met, a line each.

    An image without a readable image.jpg and ground_truth.png is left out, and so is a prediction that cannot be read
    or has another size.
    """
    panels, problems = [], []
    for folder in sorted(path for path in (run_dir / "panels").glob("*") if path.is_dir()):
        try:
            image, truth = _read_image(folder / "image.jpg"), _read_mask(folder / "ground_truth.png")
        except (DataError, OSError) as error:
            problems.append(f"left out: {error}")
            continue
        predictions: list[UInt8Array | None] = []
        for path in (folder / f"step_{step}.png" for step in range(num_steps)):
            mask = None
            if path.exists():
                try:
                    mask = _read_mask(path)
                except (DataError, OSError) as error:
                    problems.append(f"left out: {error}")
            if mask is not None and mask.shape != truth.shape:
                problems.append(f"{path}: left out ({mask.shape} pixels, the ground truth has {truth.shape})")
                mask = None
            predictions.append(mask)
        panels.append(Panel(folder.name, image, truth, predictions))
    return panels, problems


def _read_image(path: Path) -> bytes:
    """The content of an image's file; raises DataError or OSError where it cannot be shown."""
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except UNDECODABLE as error:
        raise DataError(describe_undecodable(path, "an image", error)) from error
    return content


def _read_mask(path: Path) -> UInt8Array:
    """Class ids (H,W) of a mask; raises DataError or OSError where it cannot be read."""
    return np.array(open_mask(path), dtype=np.uint8)
