"""Images and labels reduced to a longest side."""

from __future__ import annotations

import numpy as np

from utils.images import UInt8Array


def reduced_shape(shape: tuple[int, ...], long_side: int | None) -> tuple[int, int]:
    """Height and width once the longer of them is `long_side` at most, the aspect kept; each at least 1."""
    height, width = shape[:2]
    if long_side is None or max(height, width) <= long_side:
        return height, width
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def reduce_image(image: UInt8Array, long_side: int | None) -> UInt8Array:
    """An image (H,W,3), every pixel of the reduced one being the mean of the area that it covers."""
    height, width = reduced_shape(image.shape, long_side)
    if (height, width) == image.shape[:2]:
        return image
    import cv2  # late, so that data sets without files need no OpenCV

    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def reduce_label(label: UInt8Array, long_side: int | None) -> UInt8Array:
    """The pixels of a label (H,W), or colours (H,W,3), nearest to the centres of the reduced one's."""
    height, width = reduced_shape(label.shape, long_side)
    if (height, width) == label.shape[:2]:
        return label
    rows, columns = _nearest(label.shape[0], height), _nearest(label.shape[1], width)
    return label.take(rows, axis=0).take(columns, axis=1)


def _nearest(source: int, target: int) -> list[int]:
    """For each of `target` pixels the one of `source` under its centre, in whole numbers."""
    return [(2 * i + 1) * source // (2 * target) for i in range(target)]
