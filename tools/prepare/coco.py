"""COCO's annotations: one JSON for all images, of instances or of panoptic PNGs."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.masks import read_mask
from datasets.tasks import IGNORE_INDEX
from tools.prepare.samples import (
    RESERVED,
    Annotations,
    Ids,
    Region,
    Sample,
    draw_regions,
    id_of,
    load_json,
    make_id,
    paint,
)
from utils.errors import DataError
from utils.images import Colour, UInt8Array


def read_coco(file: Path, image_folder: Path, mask_folder: Path | None) -> Annotations:
    """COCO's JSON of instances or, where annotations have segments, of panoptic PNGs; labels by category id.

    mask_folder: of the panoptic PNGs; None looks beside the JSON in a folder of its name. Images that have no
    annotation show background, in the panoptic format none may lack one.
    Raises ImportError where pycocotools is needed and missing, DataError naming what the JSON lacks.
    """
    content = load_json(file)
    try:
        names = {
            category["id"]: category["name"]
            for category in sorted(content["categories"], key=lambda c: c["id"])
        }
        colours = {
            category["name"]: _read_colour(file, category)
            for category in content["categories"]
            if category.get("color") is not None
        }
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
    return Annotations(samples, [name for name in names.values() if name not in RESERVED], colours)


def _read_colour(file: Path, category: Mapping[str, Any]) -> Colour:
    """The colour of a category: three numbers, or '#rrggbb'."""
    found = category["color"]
    if isinstance(found, str) and re.fullmatch("#[0-9a-fA-F]{6}", found):
        found = [*bytes.fromhex(found[1:])]
    if not (
        isinstance(found, list)
        and len(found) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in found)
    ):
        raise DataError(
            f"{file}: categories: color of {category['name']!r}: found {found!r}; allowed are three numbers from 0 to "
            "255 and '#rrggbb'; correct or remove it"
        )
    red, green, blue = found
    return red, green, blue


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
    return Sample(make_id(Path(entry["file_name"])), image_folder / entry["file_name"], (file,), draw)


def draw_instances(size: tuple[int, int], instances: Sequence[Instance], ids: Ids) -> UInt8Array:
    """The mask (H,W) of COCO's instances; crowds are ignored, below single objects: their outlines are rough."""
    single, crowds = (
        [(i.label, partial(_coco_region, i, size)) for i in instances if i.is_crowd == is_crowd]
        for is_crowd in (False, True)
    )
    below = [(IGNORE_INDEX, region) for _, region in draw_regions(crowds, ids)]
    return paint(size, draw_regions(single, ids), below)


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
            f"{size[0]}x{size[1]} (height x width); boxes alone make no mask: mend or remove the annotation, or "
            "choose the categories with --classes"
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
    return Sample(make_id(Path(entry["file_name"])), image_folder / entry["file_name"], (file, mask), draw)


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
    class_ids = [IGNORE_INDEX if label is None else id_of(label, ids) for label in labels]
    return np.array(class_ids, np.uint8)[inverse].reshape(pixels.shape[:2])
