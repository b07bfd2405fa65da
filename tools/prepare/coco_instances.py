"""COCO's instances: polygons, run lengths and crowds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from tools.prepare.checked import Checked, Size, brief, check
from tools.prepare.coco_tables import Flag, Image, id_in_table, label_of
from tools.prepare.raster import Area, Outline, Region, Runs
from tools.prepare.raster import Size as ImageSize
from tools.prepare.samples import Shape


class Annotation(Checked):
    """An object."""

    id: int | None = None
    image_id: int
    category_id: int
    iscrowd: Flag = False
    segmentation: Any = None


class RunLengths(Checked):
    """The pixels of an object, run by run; size: height and width."""

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    counts: Any


def read_shapes(file: Path, image: Image, names: Mapping[int, str | None]) -> list[Shape]:
    """The objects of an image; crowds are ignored, below single objects: their outlines are rough."""
    shapes = []
    for number, raw in image.annotations:
        where = f"{file}: annotation {id_in_table(raw, number)} of {image.name}"
        annotation = check(Annotation, raw, where, image.problems)
        if annotation is None:
            continue
        label = label_of(annotation.category_id, names, where, image.problems)
        if label is None:
            continue
        try:
            outline = _read_outline(annotation.segmentation, where)
        except ValueError as error:
            image.problems.extend(f"{where}: {line}" for line in str(error).splitlines())
            continue
        shapes.append(Shape(where, label, outline, is_void=annotation.iscrowd))
    return shapes


NO_AREA = (
    "its segmentation is neither polygons of at least 3 points nor run lengths; boxes alone make no mask: mend or "
    "remove the annotation, or choose the categories with --classes"
)


def _read_outline(found: Any, where: str) -> Outline | str:
    """What an annotation's segmentation draws, or why it draws nothing; raises ValueError for a damaged one."""
    if found is None or found == [] or found == [[]]:
        return NO_AREA
    if isinstance(found, dict):
        problems: list[str] = []
        runs = check(RunLengths, found, "segmentation", problems)
        if runs is None:
            raise ValueError("\n".join(problems))
        height, width = runs.size
        counts = _decode_counts(runs.counts) if isinstance(runs.counts, str) else _check_counts(runs.counts)
        return Whole(Runs(counts, 0, 0, (height, width), down=True))
    if not isinstance(found, list):
        raise ValueError(f"segmentation: found {brief(found)}; allowed are polygons and run lengths")
    rings = [_read_ring(ring, f"segmentation[{number}]") for number, ring in enumerate(found)]
    if any(len(ring) < 3 for ring in rings):
        return NO_AREA
    return Area(rings)


def _read_ring(ring: Any, where: str) -> list[tuple[float, float]]:
    """The points of a flat list x, y, x, y, …"""
    if not isinstance(ring, list) or any(type(value) not in (int, float) for value in ring):
        raise ValueError(f"{where}: found {brief(ring)}; allowed is a flat list of numbers x1, y1, x2, y2, …")
    wrong = [value for value in ring if not -1e9 < value < 1e9]
    if wrong:
        raise ValueError(f"{where}: found {brief(wrong[0])}; allowed are finite numbers of pixels")
    if len(ring) % 2:
        raise ValueError(f"{where}: found {len(ring)} numbers; allowed is an even number, two a point")
    return list(zip(ring[::2], ring[1::2], strict=True))


def _check_counts(counts: Any) -> list[int]:
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(
            f"counts: found {brief(counts)}; allowed are whole numbers from 0 on, or COCO's compressed text"
        )
    return counts


def _decode_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed text: five bits a character, differences to the length before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"counts: found {brief(text)}; it is not COCO's compressed text")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift or any(count < 0 for count in counts):
        raise ValueError(f"counts: found {brief(text)}; its run lengths are cut short or negative")
    return counts


class Whole(NamedTuple):
    """Run lengths of a whole image, whose size must be the image's."""

    runs: Runs

    def draw(self, size: ImageSize) -> Region:
        """See `Outline`."""
        if self.runs.size != size:
            found = f"{self.runs.size[0]}x{self.runs.size[1]}"
            raise ValueError(
                f"found a run-length encoding of {found} (height x width); allowed is the image's {size[0]}x{size[1]}"
            )
        return self.runs.draw(size)
