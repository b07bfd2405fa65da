"""COCO's panoptic format: PNGs whose pixels are segment ids."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from datasets.masks import read_mask
from tools.prepare.checked import Checked, FileName, brief, check, repeated
from tools.prepare.coco_tables import Flag, Image, label_of
from tools.prepare.files import find_below
from tools.prepare.raster import Size
from tools.prepare.samples import Drawing, Ids, check_mask_size, id_of
from utils.errors import DataError
from utils.labels import IGNORE_INDEX

_MAX_SEGMENT = 256**3 - 1


class Segment(Checked):
    """One segment of a panoptic PNG."""

    id: Annotated[int, Field(ge=1, le=_MAX_SEGMENT)]
    category_id: int
    iscrowd: Flag = False


class Panoptic(Checked):
    """What the PNG of an image shows."""

    image_id: int
    file_name: FileName
    segments_info: list[Any]


def read_panoptic(
    file: Path, image: Image, names: Mapping[int, str | None], folder: Path
) -> tuple[tuple[Path, ...], Any]:
    """The PNG of an image, and what draws its mask."""
    if len(image.annotations) != 1:
        image.problems.append(
            f"{file}: {image.name} has {len(image.annotations)} panoptic annotations; every image has one"
        )
        return (file,), None
    where = f"{file}: panoptic annotation of {image.name}"
    found = check(Panoptic, image.annotations[0][1], where, image.problems)
    if found is None:
        return (file,), None
    raws = [
        check(Segment, raw, f"{where}: segments_info[{k}]", image.problems)
        for k, raw in enumerate(found.segments_info)
    ]
    listed = [segment for segment in raws if segment is not None]
    image.problems.extend(
        f"{where}: segments_info: found the id {value} twice; every segment has its own"
        for value in repeated(segment.id for segment in listed)
    )
    segments = {}
    for segment in listed:
        label = label_of(segment.category_id, names, f"{where}: segment {segment.id}", image.problems)
        segments[segment.id] = None if segment.iscrowd else label
    try:
        mask = find_below(folder, found.file_name, folder, allow_outside=False)
    except ValueError as error:
        image.problems.append(f"{where}: {error}")
        return (file,), None
    return (file, mask), partial(draw_panoptic, mask, segments)


def draw_panoptic(path: Path, segments: Mapping[int, str | None], ids: Ids, size: Size) -> Drawing:
    """The mask of a panoptic PNG, whose segment ids are R + 256·G + 256²·B.

    segments: label by segment id, None for crowds. These are ignored, and so is what has no segment (id 0).
    """
    check_mask_size(path, size)
    pixels = read_mask(path, in_colour=True).astype(np.uint32)
    if pixels.ndim != 3:
        raise DataError(f"{path}: found one channel; a panoptic PNG is RGB, its id R + 256·G + 256²·B")
    values, inverse = np.unique(pixels @ np.array([1, 256, 65536], np.uint32), return_inverse=True)
    unknown = sorted(set(values.tolist()) - segments.keys() - {0})
    if unknown:
        raise DataError(
            f"{path}: holds segments that segments_info does not list: {unknown[:10]}; mend one of them"
        )
    missing = sorted(segments.keys() - set(values.tolist()))
    notes = [f"{path}: segments of segments_info without a pixel: {brief(missing)}"] if missing else []
    labels = [segments.get(value) for value in values.tolist()]
    class_ids = [IGNORE_INDEX if label is None else id_of(label, ids) for label in labels]
    return Drawing(np.array(class_ids, np.uint8)[inverse].reshape(size), [], notes)
