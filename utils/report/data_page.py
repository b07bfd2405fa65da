"""A page that shows a data set: problems, how much of it every class is, and samples with their masks."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils.files import write_atomic
from utils.images import Colour, UInt8Array
from utils.report.page import fill_template
from utils.report.pictures import IGNORED_COLOUR
from utils.report.run_files import to_hex

TEMPLATE = "data.jinja"
MAX_SIDE = 320
"""Pixels of a sample's longer side."""
OPACITY = 0.6
"""Of a class's colour over the image."""


class PageSample(NamedTuple):
    """An image (H,W,3) and its label (H,W) in class ids in learning order, 255 ignored; which it is, what it shows."""

    heading: str
    shown: str
    image: UInt8Array
    label: UInt8Array


def write_data_page(
    path: Path,
    title: str,
    summary: str,
    messages: Mapping[str, Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    colours: Mapping[str, Colour],
    samples: Sequence[PageSample],
) -> None:
    """Write the page, one file that needs no network; raises SaveError.

    messages: lines below their headings. rows: `step`, `name`, `train_images`, `train`, `val_images`, `val` of every
    class (shares as texts), and whether it `is_rare`. colours: of every class, in learning order.
    """
    table = np.full((256, 3), IGNORED_COLOUR, np.uint8)
    table[: len(colours)] = list(colours.values())
    text = fill_template(
        TEMPLATE,
        title=title,
        summary=summary,
        messages=messages,
        rows=rows,
        colours={name: to_hex(colour) for name, colour in colours.items()},
        ignored=to_hex(IGNORED_COLOUR),
        samples=[
            {
                "heading": sample.heading,
                "shown": sample.shown,
                "image": _encode(sample.image),
                "mask": _encode(lay_over(sample, table)),
            }
            for sample in samples
        ],
    )
    write_atomic(path, text)


def lay_over(sample: PageSample, table: UInt8Array) -> UInt8Array:
    """Return the image (H,W,3) below the colours of its label; background is left as it is."""
    share = (sample.label > 0)[:, :, None] * OPACITY
    mixed: UInt8Array = (sample.image * (1 - share) + table[sample.label] * share).round().astype(np.uint8)
    return mixed


def _encode(pixels: UInt8Array) -> str:
    """Return an image as a data URI, reduced to MAX_SIDE."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
