"""What every format becomes: samples, each an image and what draws its mask."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.class_index import read_image_size
from datasets.file_dataset import describe_size
from datasets.masks import MaskCoding, read_mask
from tools.prepare.checked import brief
from tools.prepare.files import find_below, make_id
from tools.prepare.raster import Outline, Region, Size, paint
from utils.errors import DataError
from utils.images import UNDECODABLE, Colour, UInt8Array, describe_undecodable
from utils.labels import IGNORE_INDEX

Ids = Mapping[str, int]
"""Class id of every label that is wanted; others are background."""


class Drawing(NamedTuple):
    """A mask (H,W) uint8 in class ids; problems, for which the image must not be used; notes, which are only said."""

    mask: UInt8Array
    problems: list[str]
    notes: list[str]


class Sample(NamedTuple):
    """An image with the files that its mask is drawn from, and what draws it for an image of some (height, width).

    `draw` can be sent to another process. It raises DataError or OSError naming what is wrong; None where nothing can
    be drawn. stated: (width, height) that the source gives for the image, None where it gives none. problems: what is
    wrong with the image already, each naming its file.
    """

    image_id: str
    image: Path
    sources: tuple[Path, ...]
    draw: Callable[[Ids, Size], Drawing] | None
    stated: tuple[int | None, int | None] = (None, None)
    problems: tuple[str, ...] = ()


def make_sample(
    file: Path,
    name: str,
    folder: Path,
    allow_outside: bool,
    draw: Callable[[Ids, Size], Drawing] | None,
    problems: Sequence[str],
    stated: tuple[int | None, int | None] = (None, None),
    sources: tuple[Path, ...] = (),
) -> Sample:
    """The sample of an image that `file` names below the `folder` of images; elsewhere, it has a problem."""
    try:
        path, image_id = find_below(folder, name, folder, allow_outside), make_id(Path(name))
    except ValueError as error:
        return Sample(
            name, folder, (file,), None, problems=(*problems, f"{file}: image {brief(name)}: {error}")
        )
    return Sample(image_id, path, sources or (file,), draw, stated, (*problems,))


class Annotations(NamedTuple):
    """The images of a source, its labels in their order, their colours where it has some.

    problems: what is wrong and belongs to no image. notes: what is passed over. folder: where its images lie.
    """

    samples: list[Sample]
    labels: list[str]
    folder: Path
    colours: Mapping[str, Colour] = {}
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()


class Format(NamedTuple):
    """A format that tools/prepare_folder.py reads: a file of this package, and a line in `formats.py`.

    what: what it reads, for --help. example: a command without the program. add_arguments: adds `source`, and what else
    names the input, to a parser. read: the annotations of 'train', and of 'val' where the source has that split; raises
    ValueError or OSError where there is nothing to read. may_lack_val: whether the source may be without 'val'.
    """

    what: str
    example: str
    add_arguments: Callable[[argparse._ArgumentGroup], None]
    read: Callable[[argparse.Namespace], dict[str, Annotations]]
    may_lack_val: bool = True


class Shape(NamedTuple):
    """One object: where it stands in its file, its label, and its outline, or why it has none.

    layer: higher ones lie over lower ones. is_void: ignored, below all others.
    """

    where: str
    label: str
    outline: Outline | str
    layer: int = 0
    is_void: bool = False


def draw_shapes(shapes: Sequence[Shape], ids: Ids, size: Size) -> Drawing:
    """The mask of shapes.

    Labels that are not wanted are background, which covers what lies below; where they have no area (points, boxes) or
    lie outside the image, they are passed over.
    """
    drawing = Drawing(np.zeros(size, np.uint8), [], [])
    layers: dict[tuple[bool, int], list[tuple[int, Region]]] = {}
    for shape in shapes:
        is_wanted = shape.label in ids or reserved_id(shape.label) is not None
        try:
            if isinstance(shape.outline, str):
                raise ValueError(shape.outline)
            region = shape.outline.draw(size)
        except ValueError as error:
            if is_wanted:
                drawing.problems.append(f"{shape.where}: {error}")
            continue
        if is_wanted and not region.pixels.any():
            drawing.notes.append(f"{shape.where}: draws no pixel; it is left out")
        class_id = IGNORE_INDEX if shape.is_void else id_of(shape.label, ids)
        layers.setdefault((not shape.is_void, shape.layer), []).append((class_id, region))
    return drawing._replace(mask=paint(size, [layers[layer] for layer in sorted(layers)]))


def draw_numbers(path: Path, labels: Mapping[int, str | None], ids: Ids, size: Size) -> Drawing:
    """The mask of a PNG of numbers; labels: that of every number, None where it is ignored.

    Raises DataError for a number that has none, or a PNG of another size than its image.
    """
    check_mask_size(path, size)
    numbers = read_mask(path)
    unknown = sorted({*np.unique(numbers).tolist()} - labels.keys())
    if unknown:
        raise DataError(
            f"{path}: found pixels of {unknown[:10]}; allowed are {sorted(labels)}; correct the mask or the list"
        )
    table = np.zeros(256, np.uint8)
    for number, label in labels.items():
        table[number] = IGNORE_INDEX if label is None else id_of(label, ids)
    return Drawing(table[numbers], [], [])


def draw_colours(path: Path, labels: Mapping[Colour, str], ids: Ids, size: Size) -> Drawing:
    """The mask of a PNG in colours; labels: that of every colour.

    Raises DataError for a colour that has none, or a PNG of another size than its image.
    """
    check_mask_size(path, size)
    coding = MaskCoding((), tuple((colour, id_of(label, ids)) for colour, label in labels.items()))
    return Drawing(coding.decode(path, read_mask(path, coding)), [], [])


def check_mask_size(path: Path, size: Size) -> None:
    """Raise DataError where a mask's header says another (height, width); nothing is decoded before."""
    found = image_size(path)
    if found != size[::-1]:
        raise DataError(describe_size("its image", size[::-1], path, found) or "")


RESERVED = {"background": 0, "_background_": 0, "__ignore__": IGNORE_INDEX}
"""Labels that are no classes, in any case of their letters; those with underscores are Labelme's own."""


def reserved_id(label: str) -> int | None:
    """The id of a label that is no class."""
    return RESERVED.get(label.casefold())


def id_of(label: str, ids: Ids) -> int:
    """The class id of a label, 0 where it is none."""
    reserved = reserved_id(label)
    return ids.get(label, 0) if reserved is None else reserved


def image_size(path: Path) -> tuple[int, int]:
    """(width, height), turned upright, from the header; raises DataError or OSError naming the file."""
    try:
        return read_image_size(str(path))
    except FileNotFoundError:
        raise
    except UNDECODABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(describe_undecodable(path, "an image", error)) from error


def count_names(names: Sequence[str], what: str = "images") -> str:
    """How many they are, and the first ones."""
    return f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"


def read_splits(
    args: argparse.Namespace, read: Callable[[Path, Path], Annotations]
) -> dict[str, Annotations]:
    """What `read` makes of each file that the arguments of `add_json_and_images` name, and of its images' folder."""
    found = {"train": read(args.source, args.images)}
    if args.val:
        found["val"] = read(args.val, args.val_images or args.images)
    return found


def add_json_and_images(what: argparse._ArgumentGroup, kind: str) -> None:
    """Add the arguments of a format with one file (of this kind) for all images."""
    what.add_argument("source", type=Path, metavar=kind, help="annotations of the training images")
    what.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="where the images lie")
    what.add_argument("--val", type=Path, metavar=kind, help="that of the validation images")
    what.add_argument("--val-images", type=Path, metavar="FOLDER", help="where these lie; default: --images")
