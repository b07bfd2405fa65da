"""Supervisely's projects: meta.json, and in every data set img/ and ann/ with a JSON an image."""

import argparse
import base64
import binascii
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from datasets.folder import IMAGE_SUFFIXES
from tools.prepare.checked import Checked, ColourValue, Name, Point, Size, check, load_json, repeated
from tools.prepare.files import list_below
from tools.prepare.raster import Outline, Png, Region, Traced
from tools.prepare.raster import Size as ImageSize
from tools.prepare.samples import Annotations, Format, Sample, Shape, count_names, draw_shapes, make_sample
from utils.errors import DataError


class Label(Checked):
    """A class of the project."""

    title: Name
    color: ColourValue | None = None


class Meta(Checked):
    """meta.json."""

    classes: list[Any]


class ImageSides(Checked):
    """The size of an image."""

    height: Size
    width: Size


class Document(Checked):
    """The JSON of an image."""

    size: ImageSides
    objects: list[Any]


class Corners(Checked):
    """Points of a polygon or a rectangle, and of its holes."""

    exterior: list[Point]
    interior: list[list[Point]] = Field(default_factory=list)


class Pixels(Checked):
    """A PNG, packed by zlib and in base64; its upper left pixel lies at origin (x, y)."""

    data: str
    origin: list[int]


class Object(Checked):
    """An object."""

    id: int | None = None
    title: Name
    kind: str
    points: Corners | None = None
    bitmap: Pixels | None = None

    @classmethod
    def fields_of(cls, raw: Any) -> Any:
        """Supervisely's names as ours; a shape without area has other points, which are not read."""
        if not isinstance(raw, dict):
            return raw
        kind = raw.get("geometryType")
        own = {"polygon": "points", "rectangle": "points", "bitmap": "bitmap"}.get(str(kind))
        fields = {"id": raw.get("id"), "title": raw.get("classTitle"), "kind": kind}
        return fields | ({own: raw[own]} if own in raw else {})


class Packed(NamedTuple):
    """A bitmap that is unpacked only when the size of its image is known: a small text can be a large file."""

    pixels: Pixels

    def draw(self, size: ImageSize) -> Region:
        """See `Outline`."""
        if len(self.pixels.origin) != 2:
            raise ValueError(f"bitmap: origin: found {self.pixels.origin}; allowed are x and y")
        left, top = self.pixels.origin
        try:
            packed = base64.b64decode(self.pixels.data, validate=True)
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(packed, 4 * size[0] * size[1] + 65536)
        except (binascii.Error, ValueError, zlib.error) as error:
            raise ValueError(f"bitmap: data is no PNG in zlib and base64 ({error}); redraw it") from error
        if not unpacker.eof:
            raise ValueError(
                "bitmap: data is cut short, or unpacks to more than its image has pixels; redraw it"
            )
        return Png(content, top, left).draw(size)


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The data sets of the project: those named train and val are the splits, or else all are one."""
    root: Path = args.source
    problems: list[str] = []
    meta = check(Meta, load_json(root / "meta.json"), str(root / "meta.json"), problems)
    raws = [] if meta is None else meta.classes
    found = [check(Label, raw, f"{root / 'meta.json'}: classes[{k}]", problems) for k, raw in enumerate(raws)]
    labels = [label for label in found if label is not None]
    problems += [
        f"{root / 'meta.json'}: found the class {name!r} twice; rename one"
        for name in repeated(label.title for label in labels)
    ]
    folders = sorted(path.parent for path in root.glob("**/ann") if path.is_dir())
    if not folders:
        raise DataError(
            "\n".join([*problems, f"{root}: no data set; expected meta.json and DATASET/ann, DATASET/img"])
        )
    names = [folder.name for folder in folders]
    splits = {"train": folders}
    if {"train", "val"} <= {*names}:
        splits = {split: [folder for folder in folders if folder.name == split] for split in ("train", "val")}
    result = {split: _read_split(root, inner, labels) for split, inner in splits.items()}
    others = sorted(
        str(folder) for folder in folders if not any(folder in inner for inner in splits.values())
    )
    notes = [f"{count_names(others, 'data sets')} are left out: neither train nor val"] if others else []
    train = result["train"]
    result["train"] = train._replace(problems=problems, notes=[*train.notes, *notes])
    return result


def _read_split(root: Path, folders: Sequence[Path], labels: Sequence[Label]) -> Annotations:
    titles = [label.title for label in labels]
    samples, bare = [], []
    for folder in folders:
        for file in list_below(folder / "ann", {".json"}):
            sample, is_bare = _read_file(file, folder / "img", root, titles)
            samples.append(sample)
            bare += [sample.image.name] if is_bare else []
    notes = [f"{root}: {count_names(bare)} without an object: background throughout"] if bare else []
    if not samples:
        raise DataError(f"{folders[0] / 'ann'}: no JSON; expected IMAGE.jpg.json for every image")
    colours = {label.title: label.color for label in labels if label.color is not None}
    return Annotations(samples, titles, root if len(folders) > 1 else folders[0], colours, notes=notes)


def _read_file(file: Path, folder: Path, root: Path, titles: Sequence[str]) -> tuple[Sample, bool]:
    problems: list[str] = []
    image = folder / file.with_suffix("").name
    if image.suffix.lower() not in IMAGE_SUFFIXES:  # an older form: IMAGE.json
        same = [path for path in list_below(folder, IMAGE_SUFFIXES) if path.stem == file.stem]
        image = same[0] if len(same) == 1 else image
    try:
        document = check(Document, load_json(file), str(file), problems)
    except DataError as error:
        return Sample(file.stem, image, (file,), None, problems=(str(error),)), False
    if document is None:
        return Sample(file.stem, image, (file,), None, problems=(*problems,)), False
    shapes = []
    for number, raw in enumerate(document.objects):
        where = f"{file}: object {number}"
        found = check(Object, Object.fields_of(raw), where, problems)
        if found is None:
            continue
        if found.title not in titles:
            problems.append(f"{where}: found the class {found.title!r}; allowed are {', '.join(titles)}")
        else:
            shapes.append(Shape(f"{where} ({found.title!r})", found.title, _read_outline(found)))
    problems += [
        f"{file}: found the id {value} twice; every object has its own"
        for value in repeated(raw.get("id") for raw in document.objects if isinstance(raw, dict))
        if value is not None
    ]
    name = image.relative_to(root).as_posix().replace("/img/", "/")
    sample = make_sample(
        file,
        name,
        root,
        False,
        partial(draw_shapes, shapes),
        problems,
        (document.size.width, document.size.height),
    )
    return sample._replace(image=image), not shapes and not problems


def _read_outline(found: Object) -> Outline | str:
    if found.kind == "bitmap" and found.bitmap is not None:
        return Packed(found.bitmap)
    if found.kind in ("polygon", "rectangle") and found.points is not None:
        points = [(x, y) for x, y in found.points.exterior]
        holes = [[(x, y) for x, y in hole] for hole in found.points.interior]
        enough = len(points) == 2 if found.kind == "rectangle" else len(points) >= 3
        if enough and all(len(hole) >= 3 for hole in holes):
            return Traced(found.kind, points, holes)
        return f"found a {found.kind} of {len(points)} points; allowed are rectangles of 2 and polygons of 3 or more"
    return (
        f"a {found.kind} has no area; allowed are polygon, rectangle and bitmap: remove it, or choose classes with "
        "--classes"
    )


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    what.add_argument("source", type=Path, metavar="FOLDER", help="the project, which holds meta.json")


SUPERVISELY = Format(
    "a project of Supervisely",
    "supervisely project/ --output fruit",
    _add_arguments,
    read,
)
