"""What predict writes: masks, overlays, confidence maps, and the list of all of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models import ModelInfo
from trainer.tiles import Confidence
from utils.files import check_writable, open_atomic, write_atomic, writing
from utils.images import UInt8Array
from utils.labels import IGNORE_INDEX

OPACITY = 0.6
"""Of a class's colour over the image."""
ROWS_AT_ONCE = 256
"""Of an overlay: its arithmetic takes 20 times the memory of the pixels."""
PREDICTIONS = "predictions.json"
UNSURE = "(unsure)"
"""What predictions.json calls pixels below --min-confidence; no class is named so."""


def save_images(
    output: Path,
    name: Path,
    pixels: UInt8Array,
    classes: UInt8Array,
    confidence: Confidence | None,
    palette: UInt8Array,
) -> None:
    """Write mask and overlay of an image, and how probable the classes are, if given, as grey from 0 to 255.

    Background (class 0) and unsure pixels are not laid over.
    """
    mask = Image.fromarray(classes)
    mask.putpalette(palette.tobytes())
    mixed = np.empty_like(pixels)
    for first in range(0, len(pixels), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        known = (classes[rows] > 0) & (classes[rows] != IGNORE_INDEX)
        shown = known[:, :, None] * OPACITY
        mixed[rows] = (pixels[rows] * (1 - shown) + palette[classes[rows]] * shown).round()
    overlay = Image.fromarray(mixed)
    written = [("masks", mask), ("overlays", overlay)]
    if confidence is not None:
        written.append(("confidence", Image.fromarray((255 * confidence).round().astype(np.uint8))))
    for folder, image in written:
        path = output / folder / f"{name}.png"
        with writing(path, classes.size), open_atomic(path) as file:
            image.save(file, "PNG")


def describe_image(
    name: Path, source: str, classes: UInt8Array, confidence: Confidence | None, info: ModelInfo
) -> dict[str, Any]:
    """An image's entry of predictions.json; shares are fractions of its pixels, of the classes that it shows."""
    # A few rows at a time: numpy counts in 64 bits.
    counts = np.zeros(256, np.int64)
    for first in range(0, len(classes), ROWS_AT_ONCE):
        counts += np.bincount(classes[first : first + ROWS_AT_ONCE].ravel(), minlength=256)
    names = {**dict(enumerate(info.class_names)), IGNORE_INDEX: UNSURE}
    entry = {
        "image": source,
        "mask": f"masks/{name.as_posix()}.png",
        "overlay": f"overlays/{name.as_posix()}.png",
        "width": classes.shape[1],
        "height": classes.shape[0],
        "shares": {names[int(c)]: counts[c] / classes.size for c in np.flatnonzero(counts)},
    }
    if confidence is not None:
        entry["confidence"] = f"confidence/{name.as_posix()}.png"
        entry["mean_confidence"] = round(float(confidence.mean(dtype=np.float64)), 4)
    return entry


def check_predictions(output: Path, overwrite: bool, with_confidence: bool) -> None:
    """Raise ValueError or OSError where a folder cannot take predictions, or holds some without `overwrite`."""
    folders = ("masks", "overlays", "confidence") if with_confidence else ("masks", "overlays")
    for folder in (output, *(output / name for name in folders)):
        check_writable(folder)
    if (output / PREDICTIONS).exists() and not overwrite:
        raise ValueError(
            f"--output {output}: holds predictions of an earlier call; give another folder, or replace them with "
            "--overwrite"
        )


def write_predictions(
    output: Path, checkpoint: Path, info: ModelInfo, entries: dict[int, dict[str, Any]]
) -> None:
    """Write predictions.json of the images so far, in the order of the command line."""
    described = {
        "checkpoint": str(checkpoint),
        "classes": [
            {"id": c, "name": name, "colour": list(colour)}
            for c, (name, colour) in enumerate(zip(info.class_names, info.palette, strict=True))
        ],
        "images": [entries[index] for index in sorted(entries)],
    }
    write_atomic(output / PREDICTIONS, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
