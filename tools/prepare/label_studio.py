"""Label Studio's JSON export: tasks with results, in percent of the image."""

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pydantic import Field

from datasets.folder import IMAGE_SUFFIXES
from tools.prepare.checked import (
    Checked,
    Point,
    Size,
    brief,
    check,
    clean_name,
    clean_path,
    load_json,
    repeated,
)
from tools.prepare.raster import Area, Ellipse, Outline, Region, crop, turned_box
from tools.prepare.raster import Size as ImageSize
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


class Task(Checked):
    """An image and what annotators made of it."""

    id: int
    data: dict[str, Any]
    annotations: list[Any]


class Annotation(Checked):
    """What one annotator made."""

    id: int | None = None
    was_cancelled: bool = False
    result: list[Any]


class Result(Checked):
    """A region, or what is said of the image as a whole."""

    id: str | None = None
    type: str
    value: dict[str, Any]
    original_width: Size | None = None
    original_height: Size | None = None
    image_rotation: Annotated[float, Field(ge=0, le=0)] = 0.0


class Polygon(Checked):
    """Points in percent."""

    points: list[Point]

    def outline(self, width: int, height: int) -> Outline:
        """What it draws; ValueError for fewer than 3 points."""
        if len(self.points) < 3:
            raise ValueError(f"found {len(self.points)} points; allowed are 3 or more")
        return Area([[(x * width / 100, y * height / 100) for x, y in self.points]])


class Box(Checked):
    """A box in percent, turned about its upper left corner by degrees."""

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0

    def outline(self, width: int, height: int) -> Outline:
        """What it draws."""
        corner = self.x * width / 100, self.y * height / 100
        sides = self.width * width / 100, self.height * height / 100
        return turned_box(corner, sides, self.rotation, corner)


class Oval(Checked):
    """An ellipse in percent, of the width and of the height, turned by degrees."""

    x: float
    y: float
    rx: float = Field(alias="radiusX")
    ry: float = Field(alias="radiusY")
    rotation: float = 0.0

    def outline(self, width: int, height: int) -> Outline:
        """What it draws."""
        centre = self.x * width / 100, self.y * height / 100
        return Ellipse(centre, (self.rx * width / 100, self.ry * height / 100), self.rotation)


class Brush(Checked):
    """Pixels, packed as `Packed` says."""

    rle: list[Annotated[int, Field(ge=0, le=255)]]

    def outline(self, width: int, height: int) -> Outline:
        """What it draws."""
        return Packed(bytes(self.rle), (height, width))


KINDS: dict[str, type[Polygon] | type[Box] | type[Oval] | type[Brush]] = {
    "polygon": Polygon,
    "rectangle": Box,
    "ellipse": Oval,
    "brush": Brush,
}
NO_AREA = {"keypoint", "vector"}


class Packed(NamedTuple):
    """Label Studio's own run lengths (its `encode_rle`) of an RGBA image, which is opaque where the object is.

    Bits: 32 for the number of values, 5 for their width - 1, 4 times 4 for the widths - 1 of lengths; then runs of a
    flag (one value, or one each), 2 bits that choose the width of the length, the length - 1, and the values.
    """

    content: bytes
    size: ImageSize

    def draw(self, size: ImageSize) -> Region:
        """See `Outline`."""
        if self.size != size:
            raise ValueError(
                f"found a brush on {self.size[1]}x{self.size[0]} pixels in an image of {size[1]}x{size[0]}"
            )
        bits = "".join(f"{byte:08b}" for byte in self.content)
        position = 0

        def take(count: int) -> int:
            nonlocal position
            if position + count > len(bits):
                raise ValueError("rle: is cut short; draw the region anew")
            position += count
            return int(bits[position - count : position], 2)

        total = take(32)
        if total != 4 * size[0] * size[1]:
            raise ValueError(f"rle: found {total} values; allowed are {4 * size[0] * size[1]}, four a pixel")
        width, lengths = take(5) + 1, [take(4) + 1 for _ in range(4)]
        values, done = np.zeros(total, np.uint8), 0
        while done < total:
            is_run, length = take(1), take(lengths[take(2)]) + 1
            if done + length > total:
                raise ValueError(
                    f"rle: found more than the {total} values that it states; draw the region anew"
                )
            found = [take(width)] if is_run else [take(width) for _ in range(length)]
            if max(found) > 255:
                raise ValueError(f"rle: found the value {max(found)}; allowed are 0 to 255")
            values[done : done + length] = found
            done += length
        return crop(values.reshape(*size, 4)[..., 3] > 0)


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The annotations of the JSON, and of that of the validation images where one is given."""
    return read_splits(args, partial(read_label_studio, allow_outside=args.allow_outside))


def read_label_studio(file: Path, folder: Path, allow_outside: bool) -> Annotations:
    """Label Studio's JSON; labels by alphabet. Tasks that nobody has annotated are left out.

    Raises DataError or OSError where the file is no such JSON.
    """
    content = load_json(file)
    if not isinstance(content, list) or not content:
        raise DataError(
            f"{file}: not Label Studio's JSON: found {brief(content)}; export the project as 'JSON'"
        )
    ids = [raw.get("id") for raw in content if isinstance(raw, dict) and type(raw.get("id")) is int]
    twice, samples, labels, open_tasks, bare = set(repeated(ids)), [], set[str](), [], []
    passed: Counter[str] = Counter()
    for number, raw in enumerate(content):
        problems: list[str] = []
        where = f"{file}: task {raw.get('id') if isinstance(raw, dict) else f'number {number}'}"
        task = check(Task, raw, where, problems)
        if task is None:
            samples.append(Sample(where, folder, (file,), None, problems=(*problems,)))
            continue
        if task.id in twice:
            problems.append(f"{where}: its id is given to another task, too; every task has its own")
        done = _annotations(task, where, problems)
        if not done and not problems:
            open_tasks.append(str(task.id))
            continue
        try:
            name = find_name(task.data, folder)
        except ValueError as error:
            samples.append(
                Sample(where, folder, (file,), None, problems=(*problems, f"{where}: data: {error}"))
            )
            continue
        place = f"{where} ({name})"
        shapes, stated = _read_results(done[0].result if done else [], place, problems, passed)
        labels |= {shape.label for shape in shapes}
        bare += [] if shapes or problems else [name]
        draw = partial(draw_shapes, shapes)
        samples.append(make_sample(file, name, folder, allow_outside, draw, problems, stated))
    notes = (
        [f"{file}: {count_names(open_tasks, 'tasks')} that nobody has annotated are left out"]
        if open_tasks
        else []
    )
    notes += [f"{file}: {count_names(bare)} without a region: background throughout"] if bare else []
    notes += [f"{file}: {count} results of type {kind} are passed over" for kind, count in passed.items()]
    return Annotations(samples, sorted(labels), folder, notes=notes)


def _annotations(task: Task, where: str, problems: list[str]) -> list[Annotation]:
    """What annotators made and did not cancel; more than one is a problem."""
    found = [
        check(Annotation, raw, f"{where}: annotation {k}", problems) for k, raw in enumerate(task.annotations)
    ]
    done = [annotation for annotation in found if annotation is not None and not annotation.was_cancelled]
    if len(done) > 1:
        problems.append(f"{where}: found {len(done)} annotations of one image; keep the one that counts")
    return done


def find_name(data: Mapping[str, Any], folder: Path) -> str:
    """Where the image of a task lies below the folder; raises ValueError.

    Label Studio gives an address. What is known of it is the end of its path, and that uploads have 8 digits in front.
    """
    urls = [
        value
        for value in data.values()
        if isinstance(value, str) and _path_of(value).suffix.lower() in IMAGE_SUFFIXES
    ]
    if len(urls) != 1:
        raise ValueError(f"found {len(urls)} addresses of images ({brief(urls)}); allowed is one")
    parts = [part for part in PurePosixPath(clean_path(str(_path_of(urls[0])))).parts if part != "/"]
    for name in ("/".join(parts[first:]) for first in range(len(parts))):
        if ".." not in parts and (folder / name).is_file():
            return name
    plain = re.sub(r"^[0-9a-f]{8}-", "", parts[-1])
    if (folder / plain).is_file():
        return plain
    raise ValueError(f"found {brief(urls[0])}; {folder} holds no {parts[-1]}")


def _path_of(url: str) -> PurePosixPath:
    """The path of an address; that of a local file is its parameter d."""
    try:
        split = urlsplit(url)
    except ValueError:
        return PurePosixPath(url)
    local = parse_qs(split.query).get("d")
    return PurePosixPath(local[0] if local else unquote(split.path))


def _read_results(
    raws: Sequence[Any], where: str, problems: list[str], passed: Counter[str]
) -> tuple[list[Shape], tuple[int | None, int | None]]:
    """The shapes of an annotation, and the (width, height) that it states."""
    found = [(k, check(Result, raw, f"{where}: result {k}", problems)) for k, raw in enumerate(raws)]
    results = [(k, result) for k, result in found if result is not None]
    labelled = {r.id: r.value.get("labels") for _, r in results if r.type == "labels"}
    regions = [(k, r) for k, r in results if r.type.removesuffix("labels") in {*KINDS, *NO_AREA}]
    for region_id in repeated(r.id for _, r in regions if r.id is not None):
        problems.append(f"{where}: found the region {region_id!r} twice; every region has its own id")
    for kind in (
        r.type
        for _, r in results
        if r.type != "labels" and r.type.removesuffix("labels") not in {*KINDS, *NO_AREA}
    ):
        passed[kind] += 1
    shapes, sizes = [], set[tuple[int | None, int | None]]()
    for number, result in regions:
        place, kind = f"{where}: result {number} ({result.type})", result.type.removesuffix("labels")
        try:
            label = _read_label(result.value.get(result.type, labelled.get(result.id)))
            sizes.add((result.original_width, result.original_height))
            shapes.append(Shape(f"{place} ({label!r})", label, _read_outline(kind, result)))
        except ValueError as error:
            problems.extend(f"{place}: {line}" for line in str(error).splitlines())
    if len(sizes) > 1:
        problems.append(f"{where}: found regions of images of several sizes: {sorted(sizes)}")
    return shapes, next(iter(sizes), (None, None))


def _read_label(found: Any) -> str:
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise ValueError(f"found the labels {brief(found)}; allowed is one")
    return clean_name(found[0])


def _read_outline(kind: str, result: Result) -> Outline | str:
    if kind in NO_AREA:
        return f"a {kind} has no area; allowed are {', '.join(KINDS)}: remove it, or choose labels with --classes"
    if result.original_width is None or result.original_height is None:
        raise ValueError("original_width, original_height: are missing; points are shares of them")
    problems: list[str] = []
    shape = check(KINDS[kind], result.value, "value", problems)
    if shape is None:
        raise ValueError("\n".join(problems))
    return shape.outline(result.original_width, result.original_height)


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    add_json_and_images(what, "JSON")


LABEL_STUDIO = Format(
    "Label Studio's export as JSON",
    "label-studio project.json --images photos/ --output fruit",
    _add_arguments,
    read,
)
