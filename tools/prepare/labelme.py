"""Labelme's annotations: one JSON an image, of polygons and other shapes."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from datasets.file_dataset import is_hidden
from tools.prepare.samples import (
    RESERVED,
    Annotations,
    Ids,
    Region,
    Sample,
    draw_regions,
    image_size,
    load_json,
    make_id,
    paint,
)
from utils.errors import DataError
from utils.images import UNDECODABLE, UInt8Array


def read_labelme(folder: Path, left_out: Iterable[Path] = ()) -> Annotations:
    """Labelme: every JSON in `folder` and below is an image's; labels in the order of the alphabet.

    Hidden files and folders are passed over; those that are `left_out` belong to something else. Raises
    FileNotFoundError where there is no JSON, DataError naming a file that is not Labelme's.
    """
    root = folder.resolve()
    others = {path for path in map(Path.resolve, left_out) if root in path.parents}
    files = sorted(
        file
        for file in folder.rglob("*.json")
        if not is_hidden(file, folder) and others.isdisjoint((root / file.relative_to(folder)).parents)
    )
    if not files:
        raise FileNotFoundError(f"{folder}: no JSON file; give the folder into which Labelme has saved")
    samples, labels = [], set()
    for file in files:
        content = _load_labelme(file)
        image = file.parent / content["imagePath"].replace("\\", "/")
        labels |= {shape["label"] for shape in content["shapes"]}
        samples.append(
            Sample(make_id(file.relative_to(folder)), image, (file,), partial(draw_labelme, file, image))
        )
    return Annotations(samples, sorted(labels - RESERVED.keys()), {})


def _load_labelme(file: Path) -> dict[str, Any]:
    content: Any = load_json(file)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    is_annotation = (
        isinstance(shapes, list)
        and isinstance(content.get("imagePath"), str)
        and all(
            isinstance(shape, dict)
            and isinstance(shape.get("label"), str)
            and isinstance(shape.get("points"), list)
            for shape in shapes
        )
    )
    if not is_annotation:
        raise DataError(
            f"{file}: not an annotation of Labelme (imagePath, and shapes with label and points); remove it from there"
        )
    return dict(content)


def draw_labelme(file: Path, image: Path, ids: Ids) -> UInt8Array:
    """The mask of an image annotated in Labelme."""
    content = _load_labelme(file)
    width, height = image_size(image)
    stated = content.get("imageWidth") or width, content.get("imageHeight") or height
    if stated != (width, height):
        raise DataError(
            f"{file}: drawn on an image of {stated[0]}x{stated[1]} (width x height), but {image} is {width}x{height}; "
            "restore the image, or annotate it anew"
        )
    size = (height, width)
    shapes = [
        (shape["label"], partial(_labelme_region, shape, size, f"{file}: shape {number}"))
        for number, shape in enumerate(content["shapes"])
    ]
    return paint(size, draw_regions(shapes, ids))


def _labelme_region(shape: Mapping[str, Any], size: tuple[int, int], where: str) -> Region:
    kind, corners = shape.get("shape_type") or "polygon", shape["points"]
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(kind)
    if least is None or len(corners) < least:
        raise DataError(
            f"{where} ({shape['label']!r}): found a {kind} of {len(corners)} points; allowed are polygons (3 or more), "
            "rectangles, circles and masks (2): others have no area; redraw or remove it, or choose the labels "
            "with --classes"
        )
    try:
        points = [(float(x), float(y)) for x, y in corners]
        return (
            _draw_mask(shape["mask"], points[0], size)
            if kind == "mask"
            else _draw_outline(kind, points, size)
        )
    except (KeyError, TypeError, *UNDECODABLE) as error:
        raise DataError(
            f"{where} ({shape['label']!r}): not a {kind} ({error}); redraw or remove it"
        ) from error


def _draw_outline(kind: str, points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Region:
    """A polygon, rectangle (two corners) or circle (centre, point on it), its outline included."""
    canvas = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(canvas)
    (x0, y0), (x1, y1) = points[:2]
    if kind == "polygon":
        draw.polygon(points, fill=1)
    elif kind == "rectangle":
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
    else:
        radius = math.hypot(x1 - x0, y1 - y0)
        draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), fill=1)
    return np.array(canvas)


def _draw_mask(encoded: str, corner: tuple[float, float], size: tuple[int, int]) -> Region:
    """A PNG in base64, not 0 where the object is, whose upper left pixel lies at `corner` (x, y)."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        pixels = np.asarray(image.convert("L")) != 0
    region = np.zeros(size, dtype=bool)
    left, top = max(0, round(corner[0])), max(0, round(corner[1]))
    window = region[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    window[:] = pixels[: window.shape[0], : window.shape[1]]
    return region
