"""The one place that draws: the outlines of all formats become regions of pixels, and regions a mask.

x counts to the right and y down, in pixels of the image; pixel (row r, column c) covers [c, c + 1) x [r, r + 1).
"""

import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from utils.images import UNDECODABLE, UInt8Array

Bools = npt.NDArray[np.bool_]
Size = tuple[int, int]
"""(height, width) of an image."""
XY = tuple[float, float]

_CROSSINGS_AT_ONCE = 200_000


class Region(NamedTuple):
    """Some pixels of an image: those that are true in a window whose first row and column these are."""

    top: int
    left: int
    pixels: Bools

    @property
    def window(self) -> tuple[slice, slice]:
        """Where the pixels lie in the image."""
        rows, columns = self.pixels.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)


class Outline(Protocol):
    """What can be drawn."""

    def draw(self, size: Size) -> Region:
        """The pixels of an image of this size that it covers; ValueError where it does not go with such an image."""


class Area(NamedTuple):
    """The area of polygons, holes left out: the pixels that pycocotools gives them.

    These are, to a fifth of a pixel, the pixels whose centre lies inside; where a ring crosses itself, inside an odd
    number of times.
    """

    rings: Sequence[Sequence[XY]]
    holes: Sequence[Sequence[XY]] = ()

    def draw(self, size: Size) -> Region:
        """See `Outline`."""
        check_points([point for ring in self.rings for point in ring], size, is_polygon=True)
        check_points([point for ring in self.holes for point in ring], size)
        region = _unite([_fill(ring, size) for ring in self.rings])
        for hole in self.holes:
            _cut(region, _fill(hole, size))
        return region


class Traced(NamedTuple):
    """A polygon, a rectangle (two corners) or a circle (centre, point on it) with the pixels that its line touches.

    They are the pixels that Labelme gives it, whose points mean the pixel that they lie in; holes lose their line, too.
    """

    kind: str
    points: Sequence[XY]
    holes: Sequence[Sequence[XY]] = ()

    def draw(self, size: Size) -> Region:
        """See `Outline`."""
        check_points(self.points, size, is_polygon=self.kind == "polygon")
        check_points([point for hole in self.holes for point in hole], size)
        canvas = Image.new("1", size[::-1])
        draw = ImageDraw.Draw(canvas)
        (x0, y0), (x1, y1) = self.points[:2]
        if self.kind == "polygon":
            draw.polygon(self.points, fill=1)
            for hole in self.holes:
                draw.polygon(hole, fill=0)
        elif self.kind == "rectangle":
            draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
        else:
            radius = math.hypot(x1 - x0, y1 - y0)
            draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), fill=1)
        return crop(np.array(canvas))


class Ellipse(NamedTuple):
    """The pixels whose centre lies in an ellipse, which is turned clockwise by degrees."""

    centre: XY
    radii: XY
    degrees: float = 0.0

    def draw(self, size: Size) -> Region:
        """See `Outline`."""
        (x, y), (rx, ry) = self.centre, self.radii
        if rx <= 0 or ry <= 0:
            raise ValueError(f"found radii of {rx:g} and {ry:g}; allowed are positive ones")
        reach = max(rx, ry)
        check_points([(x - reach, y - reach), (x + reach, y + reach)], size)
        top, left = max(0, math.floor(y - reach)), max(0, math.floor(x - reach))
        rows = np.arange(top, min(size[0], math.ceil(y + reach)))[:, None] + 0.5 - y
        columns = np.arange(left, min(size[1], math.ceil(x + reach)))[None] + 0.5 - x
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        along, across = columns * cos + rows * sin, rows * cos - columns * sin
        return Region(top, left, (along / rx) ** 2 + (across / ry) ** 2 <= 1)


class Runs(NamedTuple):
    """Run lengths in a window of the image, of zeros first: down its columns, or along its rows."""

    counts: Sequence[int]
    top: int
    left: int
    size: Size
    down: bool

    def draw(self, size: Size) -> Region:
        """See `Outline`."""
        rows, columns = self.size
        if rows > size[0] or columns > size[1]:
            raise ValueError(
                f"found a mask of {columns}x{rows} (width x height) in an image of {size[1]}x{size[0]}"
            )
        total = sum(self.counts)
        if min(self.counts, default=0) < 0 or total != rows * columns:
            raise ValueError(
                f"found counts of {total} pixels in all; allowed are lengths from 0 on whose sum is height x width, "
                f"{rows} x {columns} = {rows * columns}"
            )
        pixels = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        return place(
            pixels.reshape(columns, rows).T if self.down else pixels.reshape(rows, columns),
            self.top,
            self.left,
            size,
        )


class Png(NamedTuple):
    """A small image whose pixels are not 0 where the object is; its upper left pixel lies at (top, left).

    sizes: (width, height) that it may have.
    """

    content: bytes
    top: int
    left: int
    widths: Sequence[int] = ()
    heights: Sequence[int] = ()

    def draw(self, size: Size) -> Region:
        """See `Outline`."""
        try:
            with Image.open(io.BytesIO(self.content)) as image:
                width, height = image.size
                if self.widths and (width not in self.widths or height not in self.heights):
                    raise ValueError(
                        f"found a mask of {width}x{height} (width x height) where its points say "
                        f"{self.widths[-1]}x{self.heights[-1]}; redraw it"
                    )
                if width > 3 * size[1] or height > 3 * size[0]:
                    raise ValueError(f"found a mask of {width}x{height} in an image of {size[1]}x{size[0]}")
                channel = image.getchannel("A") if image.mode in ("RGBA", "LA") else image
                pixels = np.asarray(channel if channel.mode in ("1", "P") else channel.convert("L")) != 0
        except UNDECODABLE as error:
            if type(error) is ValueError and str(error).startswith("found "):
                raise
            raise ValueError(f"not a mask that Pillow can decode ({' '.join(str(error).split())})") from error
        return place(pixels, self.top, self.left, size)


def turned_box(corner: XY, sides: XY, degrees: float, about: XY) -> Area:
    """A box, given by its upper left corner, width and height, turned clockwise `about` a point."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    (left, top), (width, height), (x0, y0) = corner, sides, about
    right, bottom = left + width, top + height
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return Area(
        [[(x0 + (x - x0) * cos - (y - y0) * sin, y0 + (x - x0) * sin + (y - y0) * cos) for x, y in corners]]
    )


def check_points(points: Sequence[XY], size: Size, is_polygon: bool = False) -> None:
    """Raise ValueError where points are shares of the image, lie outside it, or too far out to be meant."""
    if not points:
        return
    height, width = size
    xs, ys = [x for x, _ in points], [y for _, y in points]
    for name, values, side in (("x", xs, width), ("y", ys, height)):
        if min(values) < -side or max(values) > 2 * side:
            worst = max(values, key=lambda value: abs(value - side / 2))
            raise ValueError(
                f"found {name} = {worst:g} in an image of {width}x{height} (width x height); allowed are {-side} to "
                f"{2 * side}"
            )
        if max(values) < 0 or min(values) > side:
            raise ValueError(
                f"lies outside its image of {width}x{height} (width x height): {name} from {min(values):g} to "
                f"{max(values):g}; correct or remove it"
            )
    is_shares = min(xs + ys) >= 0 and max(xs + ys) <= 1
    if is_shares and max(size) > 2 and (is_polygon or any(value % 1 for value in xs + ys)):
        raise ValueError(
            f"found points that all lie within 0 to 1, as shares of the image would; allowed are pixels of "
            f"{width}x{height} (width x height)"
        )


def crop(mask: Bools) -> Region:
    """The pixels of a mask (H,W) of a whole image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return NOTHING
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Region(int(rows[0]), int(columns[0]), mask[window].copy())


def place(pixels: Bools, top: int, left: int, size: Size) -> Region:
    """Pixels whose upper left one lies at (top, left), cut where the image ends; ValueError where nothing is left."""
    rows, columns = pixels.shape
    if top >= size[0] or left >= size[1] or top + rows <= 0 or left + columns <= 0:
        raise ValueError(
            f"lies outside its image of {size[1]}x{size[0]} (width x height): {columns}x{rows} pixels from "
            f"({left}, {top}) on; correct or remove it"
        )
    inside = pixels[max(0, -top) : size[0] - top, max(0, -left) : size[1] - left]
    return Region(max(0, top), max(0, left), inside)


NOTHING = Region(0, 0, np.zeros((0, 0), dtype=bool))


def _unite(regions: Iterable[Region]) -> Region:
    found = [region for region in regions if region.pixels.size]
    if len(found) <= 1:
        return found[0] if found else NOTHING
    top, left = min(region.top for region in found), min(region.left for region in found)
    bottom, right = max(r.window[0].stop for r in found), max(r.window[1].stop for r in found)
    pixels = np.zeros((bottom - top, right - left), dtype=bool)
    for region in found:
        pixels[Region(region.top - top, region.left - left, region.pixels).window] |= region.pixels
    return Region(top, left, pixels)


def _cut(region: Region, hole: Region) -> None:
    """Take the pixels of a hole out of a region."""
    rows, columns = (
        slice(max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(region.window, hole.window, strict=True)
    )
    if rows.start < rows.stop and columns.start < columns.stop:
        kept = ~hole.pixels[_shift(rows, hole.top), _shift(columns, hole.left)]
        region.pixels[_shift(rows, region.top), _shift(columns, region.left)] &= kept


def _shift(span: slice, start: int) -> slice:
    return slice(span.start - start, span.stop - start)


def _fill(ring: Sequence[XY], size: Size) -> Region:
    """The inside of a ring of points, pixel for pixel as pycocotools fills it (its rleFrPoly).

    The memory of that grows with the length of the line, which a file may make as long as it likes; here it does not.
    """
    # Points on a grid of a fifth of a pixel, rounded as C does. Lines on it cross the middles of columns, from one grid
    # line (5 c + 2) to the next; below a crossing, a column changes between outside and inside.
    starts = np.trunc(5 * np.array(ring, dtype=np.float64) + 0.5)
    ends = np.roll(starts, -1, axis=0)
    low, high = np.minimum(starts[:, 0], ends[:, 0]), np.maximum(starts[:, 0], ends[:, 0])
    first = np.maximum(0, np.ceil((low - 2) / 5)).astype(np.int64)
    last = np.minimum(size[1] - 1, np.floor((high - 3) / 5)).astype(np.int64)
    counts = np.maximum(0, last - first + 1)
    if counts.sum() > max(10_000, 4 * size[0] * size[1]):
        raise ValueError(
            f"its line crosses {counts.sum()} columns of pixels, more often than there are pixels; redraw it"
        )
    edges = np.flatnonzero(counts)
    if not edges.size:
        return NOTHING
    left = int(first[edges].min())
    top, bottom = (
        int(row) for row in _row_of(np.array([starts[:, 1].min() - 1, starts[:, 1].max() + 1]), size)
    )
    shape = bottom - top + 1, int(last[edges].max()) - left + 1
    changes = np.zeros(shape[0] * shape[1], np.bool_)
    for part in np.split(edges, np.flatnonzero(np.diff(np.cumsum(counts[edges]) // _CROSSINGS_AT_ONCE)) + 1):
        edge = np.repeat(part, counts[part])
        offset = np.arange(edge.size) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
        column = first[edge] + offset
        row = _row_of(_height_at(starts[edge], ends[edge], 5.0 * column + 2), size)
        place, count = np.unique((row - top) * shape[1] + column - left, return_counts=True)
        changes[place] ^= count % 2 == 1
    inside = changes.reshape(shape)
    for below in range(1, shape[0]):  # ufunc.accumulate takes twenty times as long
        inside[below] ^= inside[below - 1]
    return Region(top, left, inside[:-1])


def _row_of(height: npt.NDArray[np.float64], size: Size) -> npt.NDArray[np.int64]:
    """The first row below a y on the grid."""
    return np.ceil(np.clip((height + 0.5) / 5 - 0.5, 0, size[0])).astype(np.int64)


def _height_at(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The smaller y of a line's points on the grid at x and beside it, at x + 1."""
    run = np.abs(ends - starts)
    is_flat = run[:, 0] >= run[:, 1]
    along = np.where(is_flat, 0, 1)
    index = np.arange(len(x))
    flip = starts[index, along] > ends[index, along]
    a, b = np.where(flip[:, None], ends, starts), np.where(flip[:, None], starts, ends)
    (ax, ay), (bx, by) = a.T, b.T
    slope = np.where(is_flat, by - ay, bx - ax) / np.where(is_flat, run[:, 0], run[:, 1])
    flat = np.minimum(np.trunc(ay + slope * (x - ax) + 0.5), np.trunc(ay + slope * (x + 1 - ax) + 0.5))
    # A steep line has a point for every y: of the first beyond the crossing, and the one before it, the latter.
    safe = np.where(slope == 0, 1, slope)
    step = np.ceil((x + 0.5 - ax) / safe)

    def is_beyond(steps: npt.NDArray[np.float64]) -> Bools:
        return (np.trunc(ax + slope * steps + 0.5) > x) == (slope > 0)

    step = step - is_beyond(step - 1)
    step = step + ~is_beyond(step)
    return np.where(is_flat, flat, ay + step - 1)


def paint(size: Size, layers: Iterable[Sequence[tuple[int, Region]]]) -> UInt8Array:
    """A mask (H,W) uint8 of layers of regions with their class ids over background.

    A layer lies over those before it; in a layer, smaller regions lie over larger ones, of equal ones the later on top.
    """
    mask = np.zeros(size, np.uint8)
    for layer in layers:
        for class_id, region in sorted(layer, key=lambda found: -int(found[1].pixels.sum())):
            mask[region.window][region.pixels] = class_id
    return mask
