"""tools/prepare/raster.py draws what a slow rasterisation and the tools of the formats draw, pixel for pixel."""

from __future__ import annotations

import io
import math
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from tests.support import slow_raster
from tools.prepare import raster
from tools.prepare.raster import Area, Ellipse, Outline, Png, Runs, Traced

Bools = raster.Bools


def drawn(outline: Outline, height: int, width: int) -> Bools:
    region = outline.draw((height, width))
    mask = np.zeros((height, width), bool)
    mask[region.window] = region.pixels
    return mask


SIDES = st.integers(3, 24)
SHARES = st.lists(st.tuples(*[st.sampled_from([i / 24 for i in range(-4, 29)])] * 2), min_size=3, max_size=7)
"""Points as shares of the image, a little outside it as well."""


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SHARES, st.sampled_from([None, 2, 1, 0]))
def test_an_area_is_that_of_the_slow_rule_and_of_pycocotools(
    height: int, width: int, shares: list[tuple[float, float]], digits: int | None
) -> None:
    points = [(x * width, y * height) for x, y in shares]
    if digits is not None:
        points = [(round(x, digits), round(y, digits)) for x, y in points]
    region = raster._fill(points, (height, width))
    mask = np.zeros((height, width), bool)
    mask[region.window] = region.pixels
    np.testing.assert_array_equal(mask, slow_raster.area(points, height, width))
    flat = [value for point in points for value in point]
    expected = coco_mask.decode(coco_mask.frPyObjects([flat], height, width))[..., 0]
    np.testing.assert_array_equal(mask, expected)


def test_an_area_is_the_pixels_whose_centre_lies_inside() -> None:
    triangle = [(1.0, 1.0), (6.0, 1.0), (1.0, 6.0)]
    rows, columns = np.mgrid[:8, :8] + 0.5
    expected = (columns > 1) & (rows > 1) & (columns + rows < 7)
    np.testing.assert_array_equal(drawn(Area([triangle]), 8, 8), expected)
    square, hole = [(1, 1), (7, 1), (7, 7), (1, 7)], [(3, 3), (5, 3), (5, 5), (3, 5)]
    expected = np.zeros((8, 8), bool)
    expected[1:7, 1:7] = True
    expected[3:5, 3:5] = False
    np.testing.assert_array_equal(drawn(Area([square], [hole]), 8, 8), expected)


def labelme_own(kind: str, points: list[tuple[float, float]], height: int, width: int) -> Bools:
    """labelme.utils.shape_to_mask (5.x), its lines for these kinds."""
    image = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(image)
    if kind == "circle":
        (cx, cy), (px, py) = points
        d = math.sqrt((cx - px) ** 2 + (cy - py) ** 2)
        draw.ellipse([cx - d, cy - d, cx + d, cy + d], outline=1, fill=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        draw.rectangle([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)], outline=1, fill=1)
    else:
        draw.polygon(xy=points, outline=1, fill=1)
    return np.array(image, dtype=bool)


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, SHARES, st.sampled_from(["polygon", "rectangle", "circle"]))
def test_a_traced_shape_is_what_labelme_draws(
    height: int, width: int, shares: list[tuple[float, float]], kind: str
) -> None:
    points = [(x * width, y * height) for x, y in (shares if kind == "polygon" else shares[:2])]
    try:
        mask = drawn(Traced(kind, points), height, width)
    except ValueError as error:
        assert "outside" in str(error) or "shares" in str(error)  # noqa: PT017
        return
    np.testing.assert_array_equal(mask, labelme_own(kind, points, height, width))


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, st.lists(st.integers(0, 23), min_size=6, max_size=6))
def test_a_traced_polygon_of_right_angles_is_that_of_the_slow_rule(
    height: int, width: int, numbers: list[int]
) -> None:
    x0, x1, x2 = sorted(number % width for number in numbers[:3])
    y0, y1, y2 = sorted(number % height for number in numbers[3:])
    corner: list[tuple[float, float]] = [(x0, y0), (x2, y0), (x2, y1), (x1, y1), (x1, y2), (x0, y2)]
    if x2 > 1 or y2 > 1:
        mask = drawn(Traced("polygon", corner), height, width)
        np.testing.assert_array_equal(mask, slow_raster.traced(corner, height, width))


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.lists(st.integers(0, 23), min_size=4, max_size=4), st.integers(0, 360))
def test_an_ellipse_is_the_pixels_whose_centre_lies_inside(
    height: int, width: int, numbers: list[int], degrees: int
) -> None:
    height = width = max(height, width)
    centre, radii = (
        (numbers[0] % width + 0.3, numbers[1] % height + 0.1),
        (numbers[2] % width / 2 + 0.4, numbers[3] % width / 2 + 0.4),
    )
    expected = slow_raster.ellipse(centre, radii, degrees, height, width)
    np.testing.assert_array_equal(drawn(Ellipse(centre, radii, degrees), height, width), expected)


def png(mask: Bools, mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.integers(-9, 11), st.integers(-9, 11), st.integers(0, 99), st.sampled_from(["1", "L", "P"]))
def test_a_mask_beyond_the_edge_is_cut_and_never_moved(left: int, top: int, seed: int, mode: str) -> None:
    pixels = np.random.default_rng(seed).random((10, 10)) < 0.5
    expected = np.zeros((12, 12), bool)
    for row, column in zip(*np.nonzero(pixels), strict=True):
        if 0 <= row + top < 12 and 0 <= column + left < 12:
            expected[row + top, column + left] = True
    np.testing.assert_array_equal(drawn(Png(png(pixels, mode), top, left), 12, 12), expected)
    counts = np.diff([0, *np.flatnonzero(np.diff(pixels.reshape(-1), prepend=False)), pixels.size]).tolist()
    along = Runs(counts, top, left, (10, 10), down=False)
    np.testing.assert_array_equal(drawn(along, 12, 12), expected)
    counts = np.diff([0, *np.flatnonzero(np.diff(pixels.T.reshape(-1), prepend=False)), pixels.size]).tolist()
    np.testing.assert_array_equal(drawn(Runs(counts, top, left, (10, 10), down=True), 12, 12), expected)


def test_the_labelme_mask_of_the_issue_has_55_pixels() -> None:
    mask = drawn(Png(png(np.ones((10, 21), bool)), -5, -10), 100, 100)
    assert mask.sum() == 55
    assert mask[:5, :11].all()


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (Area([[(0, 0), (1e8, 0), (0, 3)]]), "found x = 1e+08 in an image of 8x6"),
        (Area([[(0.1, 0.1), (0.9, 0.1), (0.5, 0.9)]]), "all lie within 0 to 1, as shares of the image"),
        (Traced("polygon", [(0, 0), (1, 0), (1, 1)]), "all lie within 0 to 1"),
        (Traced("rectangle", [(0.2, 0.2), (0.8, 0.8)]), "all lie within 0 to 1"),
        (Area([[(9, 1), (10, 1), (10, 3)]]), "lies outside its image of 8x6 (width x height): x from 9 to 10"),
        (Traced("polygon", [(1, -4), (3, -4), (3, -2)]), "lies outside its image of 8x6"),
        (Runs([10, 10], 0, 0, (6, 8), True), "found counts of 20 pixels in all; allowed are lengths from 0 on"),
        (Runs([-1, 49], 0, 0, (6, 8), True), "found counts of 48 pixels in all; allowed are lengths from 0 on"),
        (Runs([], 0, 0, (6, 8), True), "found counts of 0 pixels"),
        (Runs([10**12], 0, 0, (10**6, 10**6), True), "found a mask of 1000000x1000000"),
        (Png(png(np.ones((20, 20), bool)), 0, 0, (5, 6), (5, 6)), "20x20 (width x height) where its points say 6x6"),
        (Png(png(np.ones((40, 4), bool)), 0, 0), "found a mask of 4x40 in an image of 8x6"),
        (Png(png(np.ones((2, 2), bool)), 6, 0), "lies outside its image"),
        (Png(b"no PNG", 0, 0), "not a mask that Pillow can decode"),
        (Ellipse((3, 3), (0, 1)), "found radii of 0 and 1; allowed are positive ones"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_go_with_its_image_is_refused(outline: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        outline.draw((6, 8))


def test_memory_and_time_do_not_grow_with_the_line_of_a_polygon() -> None:
    tracemalloc.start()
    raster._fill([(float(200 * (i % 2)), i / 6) for i in range(700)], (200, 200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    with pytest.raises(
        ValueError, match="its line crosses 200000 columns of pixels, more often than there are"
    ):
        raster._fill([(float(200 * (i % 2)), i / 6) for i in range(1000)], (200, 200))
