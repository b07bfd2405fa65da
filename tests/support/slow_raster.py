"""Shapes rasterised pixel by pixel in plain Python: what tools/prepare/raster.py must draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tests.support.data import Mask

Bools = npt.NDArray[np.bool_]
Points = Sequence[tuple[float, float]]


def area(points: Points, height: int, width: int) -> Bools:
    """A polygon by COCO's rule: the line is walked in fifths of a pixel, and columns flip below where it crosses."""
    corners = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in points]
    line: list[tuple[int, int]] = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        is_flat = abs(x1 - x0) >= abs(y1 - y0)
        is_turned = (x0 > x1) if is_flat else (y0 > y1)
        (ax, ay), (bx, by) = ((x1, y1), (x0, y0)) if is_turned else ((x0, y0), (x1, y1))
        walked = []
        for t in range(steps + 1 if steps else 0):
            if is_flat:
                walked.append((ax + t, int(ay + (by - ay) / steps * t + 0.5)))
            else:
                walked.append((int(ax + (bx - ax) / steps * t + 0.5), ay + t))
        line += walked[::-1] if is_turned else walked
    mask = np.zeros((height, width), bool)
    for (u0, v0), (u1, v1) in itertools.pairwise(line):
        left = min(u0, u1)
        if u0 != u1 and left % 5 == 2 and 0 <= left // 5 < width:
            row = math.ceil(min(max((min(v0, v1) + 0.5) / 5 - 0.5, 0), height))
            mask[row:, left // 5] ^= True
    return mask


def traced(points: Points, height: int, width: int) -> Bools:
    """A polygon of pixels with its line: in every row, from the nearest pixel where it begins to where it ends."""
    corners = [(int(x), int(y)) for x, y in points]
    sides = list(zip(corners, [*corners[1:], corners[0]], strict=True))
    mask = np.zeros((height, width), bool)
    for row in range(height):
        spans = [
            (Fraction(min(a[0], b[0])), Fraction(max(a[0], b[0]))) for a, b in sides if a[1] == b[1] == row
        ]
        for below in (False, True):
            crossed = sorted(
                a[0] + Fraction((row - a[1]) * (b[0] - a[0]), b[1] - a[1])
                for a, b in sides
                if a[1] != b[1]
                and (
                    min(a[1], b[1]) < row <= max(a[1], b[1])
                    if below
                    else min(a[1], b[1]) <= row < max(a[1], b[1])
                )
            )
            spans += list(zip(crossed[::2], crossed[1::2], strict=True))
        for start, end in spans:
            first, last = math.floor(start + Fraction(1, 2)), math.ceil(end - Fraction(1, 2))
            mask[row, max(0, first) : max(0, last + 1)] = True
    return mask


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float, height: int, width: int
) -> Bools:
    """The pixels whose centre lies in an ellipse that is turned clockwise."""
    mask, turn = np.zeros((height, width), bool), math.radians(degrees)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - centre[0], row + 0.5 - centre[1]
            along = x * math.cos(turn) + y * math.sin(turn)
            across = y * math.cos(turn) - x * math.sin(turn)
            mask[row, column] = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1
    return mask


def paint(regions: Iterable[tuple[int, Bools]], height: int, width: int) -> Mask:
    """Class ids: at every pixel that of the smallest region that covers it, of equal ones the last."""
    mask = np.zeros((height, width), np.uint8)
    smallest = np.full((height, width), height * width + 1)
    for class_id, region in regions:
        size = int(region.sum())
        for row, column in zip(*np.nonzero(region), strict=True):
            if size <= smallest[row, column]:
                smallest[row, column], mask[row, column] = size, class_id
    return mask
