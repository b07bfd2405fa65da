"""The files of panels/: validation images with their ground truth and the prediction of every step.

panels/IMAGE_ID/ holds image.jpg, ground_truth.png, step_{t}.png and scored_{t}.png (the labels that step t's scores
hold its prediction against), of one size; a mask's pixel is a class id in learning order, 255 what is not evaluated.
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
    """An image (JPEG), its ground truth (H,W), and of every step its prediction (H,W) and the labels (H,W) that scores
    hold it against, None where it was not kept."""

    image_id: str
    image: bytes
    ground_truth: UInt8Array
    predictions: list[UInt8Array | None]
    scored: list[UInt8Array | None]


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
        predictions, scored = (
            [_read_step(folder / f"{name}_{step}.png", truth.shape, problems) for step in range(num_steps)]
            for name in ("step", "scored")
        )
        panels.append(Panel(folder.name, image, truth, predictions, scored))
    return panels, problems


def _read_step(path: Path, shape: tuple[int, ...], problems: list[str]) -> UInt8Array | None:
    """A mask of a step; None where there is none, or it is left out, which `problems` is told."""
    if not path.exists():
        return None
    try:
        mask = _read_mask(path)
    except (DataError, OSError) as error:
        problems.append(f"left out: {error}")
        return None
    if mask.shape != shape:
        problems.append(f"{path}: left out ({mask.shape} pixels, the ground truth has {shape})")
        return None
    return mask


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
