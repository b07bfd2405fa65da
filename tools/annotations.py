"""Masks from annotations in the formats of others: Labelme, COCO (instances, panoptic) and Cityscapes."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from datasets import cityscapes
from datasets.class_index import read_image_size
from datasets.masks import (
    UNDECODABLE,
    Colour,
    DataError,
    MaskCoding,
    UInt8Array,
    describe_undecodable,
    read_mask,
)
from datasets.tasks import IGNORE_INDEX

Ids = Mapping[str, int]
"""Class id of every label that is wanted; others are background."""
Region = npt.NDArray[np.bool_]

_RESERVED = {"background": 0, "_background_": 0, "__ignore__": IGNORE_INDEX}
"""Labels that are no classes; those with underscores are Labelme's own."""


class Sample(NamedTuple):
    """An image with the files that its mask is drawn from, and what draws it: (H,W) uint8 in class ids.

    `draw` can be sent to another process. It raises DataError or OSError naming what is wrong.
    """

    image_id: str
    image: Path
    sources: tuple[Path, ...]
    draw: Callable[[Ids], UInt8Array]


class Annotations(NamedTuple):
    """The images of a source, its labels in their order, and their colours where it has some."""

    samples: list[Sample]
    labels: list[str]
    colours: Mapping[str, Colour]


def read_labelme(folder: Path) -> Annotations:
    """Labelme: every JSON in `folder` and below is an image's; labels in the order of the alphabet.

    Raises FileNotFoundError where there is none, DataError naming a file that is not Labelme's.
    """
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder}: no JSON file; give the folder into which Labelme has saved")
    samples, labels = [], set()
    for file in files:
        content = _load_labelme(file)
        image = file.parent / content["imagePath"].replace("\\", "/")
        labels |= {shape["label"] for shape in content["shapes"]}
        samples.append(
            Sample(_name(file.relative_to(folder)), image, (file,), partial(draw_labelme, file, image))
        )
    return Annotations(samples, sorted(labels - _RESERVED.keys()), {})


def _load_labelme(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = _load_json(file)
    try:
        assert isinstance(content["imagePath"], str)
        assert all(
            isinstance(shape["label"], str) and isinstance(shape["points"], list)
            for shape in content["shapes"]
        )
    except (KeyError, TypeError, AssertionError) as error:
        raise DataError(
            f"{file}: not an annotation of Labelme (imagePath, and shapes with label and points); remove it from there"
        ) from error
    return content


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
    regions = [
        (_id_of(shape["label"], ids), _labelme_region(shape, (height, width), f"{file}: shape {number}"))
        for number, shape in enumerate(content["shapes"])
    ]
    return paint((height, width), regions)


def _labelme_region(shape: Mapping[str, Any], size: tuple[int, int], where: str) -> Region:
    kind, corners = shape.get("shape_type") or "polygon", shape["points"]
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(kind)
    if least is None or len(corners) < least:
        raise DataError(
            f"{where} ({shape['label']!r}): found a {kind} of {len(corners)} points; allowed are polygons (3 or more), "
            "rectangles, circles and masks (2): others have no area; redraw or remove it"
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


def read_coco(file: Path, image_folder: Path, mask_folder: Path | None) -> Annotations:
    """COCO's JSON of instances or, where annotations have segments, of panoptic PNGs; labels by category id.

    mask_folder: of the panoptic PNGs; None looks beside the JSON in a folder of its name. Images that have no
    annotation show background, in the panoptic format none may lack one.
    Raises ImportError where pycocotools is needed and missing, DataError naming what the JSON lacks.
    """
    content = _load_json(file)
    try:
        names = {
            category["id"]: category["name"]
            for category in sorted(content["categories"], key=lambda c: c["id"])
        }
        colours = {c["name"]: tuple(c["color"]) for c in content["categories"] if "color" in c}
        if len(set(names.values())) < len(names):
            raise DataError(f"{file}: two categories share a name; rename one")
        annotations: dict[int, list[Any]] = {entry["id"]: [] for entry in content["images"]}
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        is_panoptic = any("segments_info" in annotation for annotation in content["annotations"])
        if not is_panoptic:
            _import_pycocotools()
        make = _panoptic_sample if is_panoptic else _instances_sample
        samples = [
            make(
                file,
                entry,
                annotations[entry["id"]],
                names,
                image_folder,
                mask_folder or file.with_suffix(""),
            )
            for entry in content["images"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: not COCO's instances or panoptic annotations ({type(error).__name__}: {error}); expected images, "
            "annotations and categories that refer to each other by id"
        ) from error
    return Annotations(samples, [name for name in names.values() if name not in _RESERVED], colours)


class Instance(NamedTuple):
    """One object of COCO: where it stands in the file, its label, whether it is a crowd, and its outline."""

    where: str
    label: str
    is_crowd: bool
    segmentation: Any


def _instances_sample(
    file: Path, entry: Any, annotations: list[Any], names: Mapping[int, str], image_folder: Path, _: Path
) -> Sample:
    instances = [
        Instance(
            f"{file}: annotation {annotation['id']} of {entry['file_name']}",
            names[annotation["category_id"]],
            bool(annotation.get("iscrowd")),
            annotation.get("segmentation"),
        )
        for annotation in annotations
    ]
    draw = partial(draw_instances, (entry["height"], entry["width"]), instances)
    return Sample(_name(Path(entry["file_name"])), image_folder / entry["file_name"], (file,), draw)


def draw_instances(size: tuple[int, int], instances: Sequence[Instance], ids: Ids) -> UInt8Array:
    """The mask (H,W) of COCO's instances; crowds are ignored, below single objects: their outlines are rough."""
    crowds = [(IGNORE_INDEX, _coco_region(instance, size)) for instance in instances if instance.is_crowd]
    single = [
        (_id_of(instance.label, ids), _coco_region(instance, size))
        for instance in instances
        if not instance.is_crowd
    ]
    return paint(size, single, below=crowds)


def _coco_region(instance: Instance, size: tuple[int, int]) -> Region:
    coco, found = _import_pycocotools(), instance.segmentation
    is_polygons = isinstance(found, list) and len(found) > 0
    if is_polygons and all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in found):
        encoded = coco.merge(coco.frPyObjects(found, *size))
    elif isinstance(found, dict) and list(found.get("size", [])) == list(size) and "counts" in found:
        encoded = coco.frPyObjects(found, *size) if isinstance(found["counts"], list) else found
    else:
        raise DataError(
            f"{instance.where}: its segmentation is neither polygons of at least 3 points nor a run-length encoding of "
            f"{size[0]}x{size[1]} (height x width); boxes alone make no mask: mend or remove the annotation"
        )
    return np.asarray(coco.decode(encoded), dtype=bool)


def _import_pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(
            f"COCO's instances need pycocotools ({error}): `pip install pycocotools`"
        ) from error
    return mask


def _panoptic_sample(
    file: Path,
    entry: Any,
    annotations: list[Any],
    names: Mapping[int, str],
    image_folder: Path,
    mask_folder: Path,
) -> Sample:
    if len(annotations) != 1:
        raise DataError(
            f"{file}: {entry['file_name']} has {len(annotations)} panoptic annotations; every image has one"
        )
    segments = {
        segment["id"]: None if segment.get("iscrowd") else names[segment["category_id"]]
        for segment in annotations[0]["segments_info"]
    }
    mask = mask_folder / annotations[0]["file_name"]
    draw = partial(draw_panoptic, mask, segments)
    return Sample(_name(Path(entry["file_name"])), image_folder / entry["file_name"], (file, mask), draw)


def draw_panoptic(path: Path, segments: Mapping[int, str | None], ids: Ids) -> UInt8Array:
    """The mask (H,W) of a panoptic PNG, whose segment ids are R + 256·G + 256²·B.

    segments: label by segment id, None for crowds. These are ignored, and so is what has no segment (id 0).
    """
    pixels = read_mask(path, in_colour=True).astype(np.uint32)
    if pixels.ndim != 3:
        raise DataError(f"{path}: found one channel; a panoptic PNG is RGB, its id R + 256·G + 256²·B")
    values, inverse = np.unique(pixels @ np.array([1, 256, 65536], np.uint32), return_inverse=True)
    unknown = sorted(set(values.tolist()) - segments.keys() - {0})
    if unknown:
        raise DataError(
            f"{path}: holds segments that segments_info does not list: {unknown[:10]}; mend one of them"
        )
    labels = [segments.get(value) for value in values.tolist()]
    class_ids = [IGNORE_INDEX if label is None else _id_of(label, ids) for label in labels]
    return np.array(class_ids, np.uint8)[inverse].reshape(pixels.shape[:2])


def read_cityscapes(root: Path, split: str) -> Annotations:
    """A split of Cityscapes as `datasets/cityscapes.py` finds it."""
    dataset = cityscapes.open_split(root, split)
    samples = [
        Sample(image_id, image, (mask,), partial(draw_cityscapes, mask, dataset.coding))
        for image_id, (image, mask) in dataset.samples.items()
    ]
    labels, colours = dataset.classes[1:], dataset.palette[1:]
    return Annotations(samples, [*labels], dict(zip(labels, colours, strict=True)))


def draw_cityscapes(mask: Path, coding: MaskCoding, ids: Ids) -> UInt8Array:
    """The mask (H,W) of a Cityscapes PNG; void stays ignored."""
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: len(cityscapes.CLASSES)] = [_id_of(label, ids) for label in cityscapes.CLASSES]
    return table[coding.decode(mask, read_mask(mask))]


def paint(
    size: tuple[int, int], regions: Iterable[tuple[int, Region]], below: Iterable[tuple[int, Region]] = ()
) -> UInt8Array:
    """A mask (H,W) uint8 of regions over background: smaller ones over larger ones, of equal ones the later on top.

    What is `below` is covered by all of them.
    """
    mask = np.zeros(size, np.uint8)
    for layer in (below, regions):
        cropped = [_crop(class_id, region) for class_id, region in layer if region.any()]
        for class_id, window, region in sorted(cropped, key=lambda found: -int(found[2].sum())):
            mask[window][region] = class_id
    return mask


def _crop(class_id: int, region: Region) -> tuple[int, tuple[slice, slice], Region]:
    """A region with the window that holds it: many small ones on a large image would fill the memory."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return class_id, window, region[window].copy()


def _id_of(label: str, ids: Ids) -> int:
    return _RESERVED.get(label, ids.get(label, 0))


def _name(path: Path) -> str:
    """The image id of a file in a folder: its path without suffix, folders joined by '_'."""
    return "_".join(path.with_suffix("").parts)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height), turned upright; raises DataError or OSError naming the file."""
    try:
        return read_image_size(str(path))
    except FileNotFoundError:
        raise
    except UNDECODABLE as error:
        raise DataError(describe_undecodable(path, "an image", error)) from error


def _load_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error
