"""YOLO's segments (Ultralytics): a YAML, and a text file an image of classes and polygons in shares of the image."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets.folder import IMAGE_SUFFIXES
from datasets.listing import read_lines
from tools.prepare.checked import Checked, brief, check, clean_name, clean_path, repeated
from tools.prepare.files import find_below, list_below
from tools.prepare.raster import XY, Area, Outline, Region, Size
from tools.prepare.samples import Annotations, Format, Shape, count_names, draw_shapes, make_sample
from utils.documents import load_yaml
from utils.errors import DataError

TOLERANCE = 0.01
"""How far beyond the image a point may lie, in shares of it; tools round."""


class Document(Checked):
    """The YAML; names: a list, or an object by class id."""

    path: str | None = None
    train: Any
    val: Any = None
    test: Any = None
    names: Any


class Shares(NamedTuple):
    """The area of a polygon whose points are shares of the image."""

    points: Sequence[XY]

    def draw(self, size: Size) -> Region:
        """See `Outline`."""
        return Area([[(x * size[1], y * size[0]) for x, y in self.points]]).draw(size)


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The splits of the YAML."""
    file: Path = args.source
    problems: list[str] = []
    document = check(Document, load_yaml(file), str(file), problems)
    names = {} if document is None else _read_names(file, document.names, problems)
    if document is None or not names:
        raise DataError(
            "\n".join([*problems, f"{file}: not the YAML of a YOLO data set: expected train and names"])
        )
    root = file.parent
    if document.path and (file.parent / document.path).is_dir():
        root = file.parent / document.path
    if not args.allow_outside and not root.resolve().is_relative_to(file.parent.resolve()):
        raise DataError(
            f"{file}: path: found {document.path!r}, outside {file.parent}; allowed with --allow-outside"
        )
    splits = {"train": document.train} | ({"val": document.val} if document.val else {})
    found = {
        split: _read_split(file, root, value, names, args.allow_outside) for split, value in splits.items()
    }
    notes = [f"{file}: its test split is left out"] if document.test else []
    train = found["train"]
    found["train"] = train._replace(problems=[*problems, *train.problems], notes=[*train.notes, *notes])
    return found


def _read_names(file: Path, raw: Any, problems: list[str]) -> dict[int, str]:
    """The class names by id."""
    pairs = [*enumerate(raw)] if isinstance(raw, list) else [*raw.items()] if isinstance(raw, dict) else []
    names: dict[int, str] = {}
    for class_id, name in pairs:
        try:
            if type(class_id) is not int or class_id < 0 or not isinstance(name, str):
                raise ValueError("allowed are texts, by a whole number from 0 on")
            names[class_id] = clean_name(name)
        except ValueError as error:
            problems.append(f"{file}: names: found {brief(class_id)}: {brief(name)}; {error}")
    problems += [
        f"{file}: names: found {name!r} twice; every class has its own" for name in repeated(names.values())
    ]
    return dict(sorted(names.items()))


def _find_folder(root: Path, value: Any, allow_outside: bool) -> Path:
    """The folder of a split's images; Roboflow writes '../train/images' for 'train/images'."""
    if not isinstance(value, str):
        raise ValueError(f"found {brief(value)}; allowed is a folder of images")
    for name in (value.removeprefix("../"), value):
        if (root / name).is_dir():
            return find_below(root, clean_path(name), root, allow_outside)
    raise ValueError(f"found {value!r}, which is no folder below {root}; allowed is a folder of images")


def _read_split(
    file: Path, root: Path, value: Any, names: dict[int, str], allow_outside: bool
) -> Annotations:
    try:
        folder = _find_folder(root, value, allow_outside)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    labels = _labels_of(folder)
    samples, bare, used = [], [], set[Path]()
    for image in list_below(folder, IMAGE_SUFFIXES):
        name = image.relative_to(folder)
        text = labels / name.with_suffix(".txt")
        used.add(text)
        problems: list[str] = []
        shapes = _read_shapes(text, names, problems) if text.is_file() else []
        bare += [] if shapes or problems else [image.name]
        source = text if text.is_file() else file
        draw = partial(draw_shapes, shapes)
        samples.append(make_sample(source, name.as_posix(), folder, False, draw, problems, sources=(source,)))
    notes = [f"{folder}: {count_names(bare)} without a segment: background throughout"] if bare else []
    unused = [path.name for path in list_below(labels, {".txt"}) if path not in used]
    notes += [f"{labels}: {count_names(unused, 'files')} without an image are left out"] if unused else []
    if not samples:
        raise DataError(f"{folder}: no image; allowed are {', '.join(IMAGE_SUFFIXES)}")
    return Annotations(samples, [*names.values()], folder, notes=notes)


def _labels_of(folder: Path) -> Path:
    """Where the text files of a folder of images lie: 'labels' stands in the place of the last 'images'."""
    parts = [*folder.parts]
    if "images" not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _read_shapes(text: Path, names: dict[int, str], problems: list[str]) -> list[Shape]:
    shapes = []
    for number, line in enumerate(read_lines(text), start=1):
        if not line.strip():
            continue
        where = f"{text}: line {number}"
        try:
            class_id, outline = _read_line(line.split())
            if class_id not in names:
                raise ValueError(f"found the class {class_id}; allowed are {[*names]}")
            shapes.append(Shape(f"{where} ({names[class_id]!r})", names[class_id], outline))
        except (ValueError, OverflowError) as error:
            problems.append(f"{where}: {error}")
    return shapes


def _read_line(words: Sequence[str]) -> tuple[int, Outline | str]:
    if not words[0].isdecimal() or len(words[0]) > 9:
        raise ValueError(f"found the class {brief(words[0])}; allowed is a whole number")
    values = [float(word) for word in words[1:]]
    wrong = [value for value in values if not -TOLERANCE <= value <= 1 + TOLERANCE]
    if wrong:
        raise ValueError(f"found {wrong[0]:g}; allowed are shares of the image from 0 to 1")
    if len(values) == 4:
        return int(words[0]), (
            "found a box (4 numbers), which makes no mask; allowed are polygons of 3 or more points: remove it, or "
            "choose labels with --classes"
        )
    if len(values) % 2 or len(values) < 6:
        raise ValueError(f"found {len(values)} numbers; allowed are those of 3 or more points, two each")
    return int(words[0]), Shares(list(zip(values[::2], values[1::2], strict=True)))


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "source", type=Path, metavar="YAML", help="names the folders of images, and the classes"
    )


YOLO = Format(
    "YOLO's segments (data.yaml, images/ and labels/)",
    "yolo yolo/data.yaml --output fruit",
    _add_arguments,
    read,
)
