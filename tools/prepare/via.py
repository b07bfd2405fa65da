"""VGG Image Annotator (VIA 1 and 2): a JSON of all images, or a project."""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

from tools.prepare.checked import Checked, FileName, brief, check, clean_name, load_json
from tools.prepare.raster import Area, Ellipse, Outline, turned_box
from tools.prepare.samples import (
    Annotations,
    Format,
    Sample,
    Shape,
    add_json_and_images,
    count_names,
    draw_shapes,
    make_sample,
    read_splits,
)
from utils.errors import DataError


class Entry(Checked):
    """An image."""

    filename: FileName
    regions: Any = None


class Object(Checked):
    """A region of an image."""

    shape_attributes: dict[str, Any]
    region_attributes: dict[str, Any]


class Polygon(Checked):
    """A shape of points."""

    all_points_x: list[float]
    all_points_y: list[float]

    def outline(self) -> Outline:
        """What it draws; ValueError for another number of points than 3 or more."""
        xs, ys = self.all_points_x, self.all_points_y
        if len(xs) != len(ys) or len(xs) < 3:
            raise ValueError(f"found {len(xs)} x and {len(ys)} y; allowed are as many of both, 3 or more")
        return Area([list(zip(xs, ys, strict=True))])


class Box(Checked):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    def outline(self) -> Outline:
        """What it draws."""
        return turned_box((self.x, self.y), (self.width, self.height), 0, (self.x, self.y))


class Circle(Checked):
    """A circle."""

    cx: float
    cy: float
    r: float

    def outline(self) -> Outline:
        """What it draws."""
        return Ellipse((self.cx, self.cy), (self.r, self.r))


class Oval(Checked):
    """An ellipse; theta in radians."""

    cx: float
    cy: float
    rx: float
    ry: float
    theta: float = 0.0

    def outline(self) -> Outline:
        """What it draws."""
        return Ellipse((self.cx, self.cy), (self.rx, self.ry), math.degrees(self.theta))


KINDS: dict[str, type[Polygon] | type[Box] | type[Circle] | type[Oval]] = {
    "polygon": Polygon,
    "rect": Box,
    "circle": Circle,
    "ellipse": Oval,
}
NO_AREA = {"polyline", "point"}


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The annotations of the JSON, and of that of the validation images where one is given."""
    return read_splits(args, partial(read_via, attribute=args.attribute, allow_outside=args.allow_outside))


def read_via(file: Path, folder: Path, attribute: str | None, allow_outside: bool) -> Annotations:
    """VIA's JSON; labels are the values of an attribute of regions, by alphabet; None takes the only one.

    Raises DataError or OSError where the file is no such JSON, or the attribute is not said.
    """
    content = load_json(file)
    if isinstance(content, dict) and "_via_img_metadata" in content:
        content = content["_via_img_metadata"]
    if not isinstance(content, dict) or not content:
        raise DataError(
            f"{file}: not VIA's JSON: found {brief(content)}; expected an object with an entry an image"
        )
    entries = []
    for key, raw in content.items():
        problems: list[str] = []
        entry = check(Entry, raw, f"{file}: {brief(key)}", problems)
        entries.append((key, entry, _list_regions(entry, f"{file}: {brief(key)}", problems), problems))
    attribute = attribute or _only_attribute(file, [o for _, _, objects, _ in entries for _, o in objects])
    samples, labels, bare = [], set[str](), []
    for key, entry, objects, problems in entries:
        if entry is None:
            samples.append(Sample(key, folder, (file,), None, problems=(*problems,)))
            continue
        shapes = []
        for where, found in objects:
            try:
                label, outline = _read_label(found, attribute), _read_outline(found)
                shapes.append(Shape(f"{where} ({label!r})", label, outline))
            except ValueError as error:
                problems.extend(f"{where}: {line}" for line in str(error).splitlines())
        labels |= {shape.label for shape in shapes}
        bare += [] if shapes or problems else [entry.filename]
        samples.append(
            make_sample(file, entry.filename, folder, allow_outside, partial(draw_shapes, shapes), problems)
        )
    notes = [f"{file}: {count_names(bare)} without a region: background throughout"] if bare else []
    return Annotations(samples, sorted(labels), folder, notes=notes)


def _list_regions(entry: Entry | None, where: str, problems: list[str]) -> list[tuple[str, Object]]:
    """The regions of an image, a list in VIA 2 and an object in VIA 1."""
    raws = entry.regions if entry is not None else None
    if isinstance(raws, dict):
        raws = [*raws.values()]
    if not isinstance(raws, list):
        if raws is not None:
            problems.append(f"{where}: regions: found {brief(raws)}; allowed are a list and an object")
        return []
    found = [
        (f"{where}: region {number}", check(Object, raw, f"{where}: region {number}", problems))
        for number, raw in enumerate(raws)
    ]
    return [(place, region) for place, region in found if region is not None]


def _only_attribute(file: Path, objects: list[Object]) -> str:
    """The attribute that regions have."""
    names = list(dict.fromkeys(name for found in objects for name in found.region_attributes))
    if len(names) != 1:
        raise DataError(
            f"{file}: regions have {len(names)} attributes ({', '.join(map(brief, names))}); say with --attribute "
            "which one is the label"
        )
    return names[0]


def _read_label(found: Object, attribute: str) -> str:
    """The value of an attribute, a text or the one box that is checked."""
    value = found.region_attributes.get(attribute)
    if isinstance(value, dict):
        checked = [name for name, is_checked in value.items() if is_checked is True]
        value = checked[0] if len(checked) == 1 else value
    if not isinstance(value, str):
        raise ValueError(
            f"region_attributes.{attribute}: found {brief(value)}; allowed is the name of one class"
        )
    return clean_name(value)


def _read_outline(found: Object) -> Outline | str:
    name = found.shape_attributes.get("name")
    if isinstance(name, str) and name in NO_AREA:
        return f"a {name} has no area; allowed are {', '.join(KINDS)}: remove it, or choose labels with --classes"
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"shape_attributes.name: found {brief(name)}; allowed are {', '.join(KINDS)}")
    problems: list[str] = []
    shape = check(KINDS[name], found.shape_attributes, "shape_attributes", problems)
    if shape is None:
        raise ValueError("\n".join(problems))
    return shape.outline()


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    add_json_and_images(what, "JSON")
    what.add_argument(
        "--attribute", metavar="NAME", help="attribute of regions that is the label; default: the only one"
    )


VIA = Format(
    "a JSON of VGG Image Annotator (VIA)",
    "via via_region_data.json --images photos/ --output fruit",
    _add_arguments,
    read,
)
