"""Labelme's annotations (also X-AnyLabeling's): one JSON an image, of polygons and other shapes."""

import argparse
import base64
import binascii
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from datasets.folder import IMAGE_SUFFIXES
from tools.prepare.checked import Checked, FileName, Name, Point, Size, brief, check, load_json
from tools.prepare.files import find_below, list_below, make_id
from tools.prepare.raster import XY, Outline, Png, Traced
from tools.prepare.samples import Annotations, Format, Sample, Shape, count_names, draw_shapes
from utils.errors import DataError


class Document(Checked):
    """The JSON of an image."""

    image_path: FileName = Field(alias="imagePath")
    width: Size | None = Field(default=None, alias="imageWidth")
    height: Size | None = Field(default=None, alias="imageHeight")
    shapes: list[Any]


class Entry(Checked):
    """A shape."""

    label: Name
    points: list[Point]
    shape_type: str | None = None
    mask: str | None = None


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The annotations of the folder, and of that of the validation images where one is given."""
    folders = {"train": args.source} | ({"val": args.val} if args.val else {})
    left_out = [*folders.values(), args.output]
    return {split: read_labelme(folder, left_out, args.allow_outside) for split, folder in folders.items()}


def read_labelme(folder: Path, left_out: Iterable[Path] = (), allow_outside: bool = False) -> Annotations:
    """Labelme: every JSON in `folder` and below is an image's; labels in the order of the alphabet.

    Hidden files and folders are passed over; those that are `left_out` belong to something else. Raises
    FileNotFoundError where there is no JSON.
    """
    root = folder.resolve()
    others = {path for path in map(Path.resolve, left_out) if root in path.parents}
    files = list(list_below(folder, {".json"}, others))
    if not files:
        raise FileNotFoundError(f"{folder}: no JSON file; give the folder into which Labelme has saved")
    found = [_read_file(file, folder, allow_outside) for file in files]
    samples = [sample for sample, _ in found]
    labels = sorted({shape.label for _, shapes in found for shape in shapes})
    bare = [sample.image.name for sample, shapes in found if not shapes and not sample.problems]
    notes = [f"{folder}: {count_names(bare)} without a shape: background throughout"] if bare else []
    return Annotations(samples, labels, folder, notes=notes)


def _read_file(file: Path, folder: Path, allow_outside: bool) -> tuple[Sample, list[Shape]]:
    """The image of a JSON, with its shapes."""
    problems: list[str] = []
    try:
        image_id = make_id(file.relative_to(folder))
        document = check(Document, load_json(file), str(file), problems)
        if document is None:
            expected = "imagePath, and shapes with label and points"
            raise DataError(f"{file}: not an annotation of Labelme ({expected}); remove it from there")
        image = find_below(file.parent, document.image_path, folder, allow_outside)
    except DataError as error:
        return Sample(file.stem, file, (file,), None, problems=(*problems, str(error))), []
    except ValueError as error:
        return Sample(file.stem, file, (file,), None, problems=(f"{file}: {error}",)), []
    problems += _find_other_image(file, image)
    shapes = []
    for number, raw in enumerate(document.shapes):
        label = raw.get("label") if isinstance(raw, dict) else None
        called = f" ({brief(label)})" if isinstance(label, str) else ""
        where = f"{file}: shape {number}{called}"
        entry = check(Entry, raw, where, problems)
        if entry is not None:
            shapes.append(Shape(where, entry.label, read_outline(entry)))
    draw = partial(draw_shapes, shapes)
    return Sample(image_id, image, (file,), draw, (document.width, document.height), (*problems,)), shapes


def _find_other_image(file: Path, image: Path) -> list[str]:
    """What is wrong where an image of the JSON's own name lies beside it, and the JSON names another one."""
    beside = [file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES if file.stem != image.stem]
    return [
        f"{file}: imagePath names {image.name}, but {other.name} lies beside it; correct imagePath, or rename one"
        for other in beside
        if other.is_file()
    ]


NUM_POINTS = {
    "polygon": (3, math.inf),
    "rectangle": (2, 4),
    "circle": (2, 2),
    "mask": (2, 2),
    "rotation": (4, 4),
    "oriented_rectangle": (4, 4),
    "quadrilateral": (4, 4),
}
"""Least and most points of a shape; a rectangle has two corners, or all four in X-AnyLabeling, whose is `rotation`."""


def read_outline(entry: Entry) -> Outline | str:
    """What a shape draws, or why it draws nothing."""
    kind, points = entry.shape_type or "polygon", [(x, y) for x, y in entry.points]
    least, most = NUM_POINTS.get(kind, (math.inf, 0))
    if not least <= len(points) <= most or (kind == "rectangle" and len(points) == 3):
        return (
            f"found a {kind} of {len(points)} points; allowed are polygons (3 or more), rectangles (2, or 4), circles "
            "and masks (2), rotated rectangles (4): others have no area; redraw or remove it, or choose the labels "
            "with --classes"
        )
    if kind == "mask":
        return _read_mask(entry.mask, *points)
    if kind == "rectangle" and len(points) == 4:
        corners = {(x, y) for x, _ in points for _, y in points}
        if corners != {*points}:
            return "found a rectangle of 4 points that are not its corners; redraw it, or make it a polygon"
        return Traced("rectangle", (min(points), max(points)))
    return Traced(kind if kind in ("rectangle", "circle") else "polygon", points)


def _read_mask(encoded: str | None, first: XY, last: XY) -> Outline | str:
    """A PNG in base64; its last pixel lies at the second point, or one before it."""
    try:
        content = base64.b64decode(encoded or "", validate=True)
    except (binascii.Error, ValueError) as error:
        return f"not a mask: its PNG is not base64 ({error}); redraw or remove it"
    if not content:
        return "not a mask: it has no PNG; redraw or remove it"
    if max(map(abs, (*first, *last))) > 1e6:
        return f"not a mask: found the points {brief([first, last])}; redraw or remove it"
    (left, top), (right, bottom) = first, last
    width, height = round(right - left), round(bottom - top)
    return Png(content, math.floor(top), math.floor(left), (width, width + 1), (height, height + 1))


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    what.add_argument("source", type=Path, metavar="FOLDER", help="searched to its depths")
    what.add_argument(
        "--val", type=Path, metavar="FOLDER", help="that of the validation images; it may lie below the other"
    )


LABELME = Format(
    "a folder of Labelme's JSON files",
    "labelme photos/ --output fruit --val-fraction 0.2",
    _add_arguments,
    read,
)
