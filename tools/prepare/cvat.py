"""CVAT's XML ("CVAT for images 1.1"): polygons, boxes, ellipses and masks of all images."""

import argparse
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from tools.prepare.checked import (
    MAX_DEPTH,
    Checked,
    ColourValue,
    FileName,
    Name,
    Size,
    check,
    repeated,
)
from tools.prepare.raster import XY, Area, Ellipse, Outline, Runs, turned_box
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


class Attributes(Checked):
    """Those of an element of XML, where a number is a text."""

    model_config = ConfigDict(strict=False)


class Label(Attributes):
    """A label of the task."""

    name: Name
    color: ColourValue | None = None


class Entry(Attributes):
    """An image."""

    id: int
    name: FileName
    width: Size
    height: Size


class Object(Attributes):
    """What every shape has."""

    label: Name
    z_order: int = 0


class Polygon(Object):
    """A shape given by its points: 'x,y;x,y'."""

    points: str

    def outline(self) -> Outline:
        """What it draws; ValueError where the points are none."""
        points = [_read_point(text) for text in self.points.split(";")]
        if len(points) < 3:
            raise ValueError(f"found {len(points)} points; allowed are 3 or more")
        return Area([points])


class Box(Object):
    """Two corners, turned about its centre."""

    xtl: float
    ytl: float
    xbr: float
    ybr: float
    rotation: float = 0.0

    def outline(self) -> Outline:
        """What it draws."""
        centre = (self.xtl + self.xbr) / 2, (self.ytl + self.ybr) / 2
        sides = self.xbr - self.xtl, self.ybr - self.ytl
        return turned_box((self.xtl, self.ytl), sides, self.rotation, centre)


class Oval(Object):
    """An ellipse."""

    cx: float
    cy: float
    rx: float
    ry: float
    rotation: float = 0.0

    def outline(self) -> Outline:
        """What it draws."""
        return Ellipse((self.cx, self.cy), (self.rx, self.ry), self.rotation)


class Mask(Object):
    """Run lengths along the rows of a window, of zeros first."""

    rle: str
    left: int
    top: int
    width: Size
    height: Size

    def outline(self) -> Outline:
        """What it draws; ValueError where the run lengths are none."""
        counts = [int(text) for text in self.rle.split(",")]
        return Runs(counts, self.top, self.left, (self.height, self.width), down=False)


KINDS: Mapping[str, type[Polygon] | type[Box] | type[Oval] | type[Mask]] = {
    "polygon": Polygon,
    "box": Box,
    "ellipse": Oval,
    "mask": Mask,
}
NO_AREA = {"polyline", "points", "cuboid", "skeleton"}


def _read_point(text: str) -> XY:
    x, y = (float(part) for part in text.split(","))
    if not max(abs(x), abs(y)) < 1e9:
        raise ValueError(f"found the point {text}; allowed are finite numbers of pixels")
    return x, y


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The annotations of the XML, and of that of the validation images where one is given."""
    return read_splits(args, partial(read_cvat, allow_outside=args.allow_outside))


def read_cvat(file: Path, folder: Path, allow_outside: bool) -> Annotations:
    """CVAT's XML; labels in the order of its list. Higher layers (z_order) lie over lower ones.

    Raises DataError or OSError where the file is no such XML.
    """
    root = load_xml(file)
    if root.tag != "annotations" or root.find("version") is None:
        raise DataError(f"{file}: not CVAT's XML; export the task as 'CVAT for images 1.1'")
    problems: list[str] = []
    if root.find("track") is not None:
        problems.append(f"{file}: holds tracks of a video; export the task as 'CVAT for images 1.1'")
    labels, colours = _read_labels(file, root, problems)
    images = root.findall("image")
    twice = {key: set(repeated(image.get(key) for image in images)) for key in ("id", "name")}
    samples, bare, tags = [], [], []
    for number, image in enumerate(images):
        name = image.get("name") or f"number {number}"
        own = [
            f"{file}: image {name}: found the {key} {image.get(key)!r} twice; every image has its own"
            for key, values in twice.items()
            if image.get(key) in values
        ]
        entry = check(Entry, image.attrib, f"{file}: image {name}", own)
        shapes = _read_shapes(file, name, image, labels, own)
        bare += [] if shapes or own else [name]
        tags += [name] if image.find("tag") is not None else []
        if entry is None:
            samples.append(Sample(name, folder, (file,), None, problems=(*own,)))
            continue
        stated = entry.width, entry.height
        samples.append(
            make_sample(file, entry.name, folder, allow_outside, partial(draw_shapes, shapes), own, stated)
        )
    notes = [f"{file}: {count_names(bare)} without a shape: background throughout"] if bare else []
    notes += [f"{file}: tags of {count_names(tags)} are passed over"] if tags else []
    return Annotations(samples, labels, folder, colours, problems, notes)


def _read_labels(file: Path, root: ET.Element, problems: list[str]) -> tuple[list[str], dict[str, Any]]:
    found = [
        check(Label, {child.tag: child.text for child in label}, f"{file}: label", problems)
        for label in root.findall("meta//labels/label")
        if not label.findtext("parent")
    ]
    labels = [label for label in found if label is not None]
    problems += [
        f"{file}: found the label {name!r} twice; rename one" for name in repeated(x.name for x in labels)
    ]
    if not labels:
        problems.append(f"{file}: meta lists no label; export the task as 'CVAT for images 1.1'")
    return [x.name for x in labels], {x.name: x.color for x in labels if x.color is not None}


def _read_shapes(
    file: Path, name: str, image: ET.Element, labels: Sequence[str], problems: list[str]
) -> list[Shape]:
    shapes = []
    for number, element in enumerate(image):
        where = f"{file}: image {name}: {element.tag} {number} ({element.get('label')!r})"
        if element.tag in ("tag", "attribute"):
            continue
        kind = KINDS.get(element.tag, Object)
        found = check(kind, element.attrib, where, problems)
        if found is None:
            continue
        if found.label not in labels:
            problems.append(f"{where}: its label is not listed; allowed are {', '.join(labels)}")
            continue
        try:
            shapes.append(Shape(where, found.label, _outline(element.tag, found), found.z_order))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    return shapes


def _outline(tag: str, found: Object) -> Outline | str:
    if isinstance(found, Polygon | Box | Oval | Mask):
        return found.outline()
    if tag in NO_AREA:
        return "has no area; allowed are polygon, box, ellipse and mask: remove it, or choose labels with --classes"
    raise ValueError("is no shape of CVAT's; allowed are polygon, box, ellipse and mask")


class _Builder(ET.TreeBuilder):
    """Refuses what could make a small file large: declarations of a document type, and deep nesting."""

    depth = 0

    def doctype(self, name: str, *_: object) -> None:
        raise ValueError(f"it declares a document type ({name}), which no annotation tool writes")

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {MAX_DEPTH} levels deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self.depth -= 1
        return super().end(tag)


def load_xml(file: Path) -> ET.Element:
    """The root of an XML file; raises DataError or OSError naming it."""
    try:
        return ET.fromstring(file.read_bytes(), ET.XMLParser(target=_Builder()))
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file}: not valid XML ({error})") from error


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    add_json_and_images(what, "XML")


CVAT = Format(
    "CVAT's XML ('CVAT for images 1.1')",
    "cvat annotations.xml --images photos/ --output fruit",
    _add_arguments,
    read,
)
