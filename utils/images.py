"""Images in files: types of arrays and colours, masks decoded, and what is said of files that cannot be."""

import io
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from utils.errors import DataError, explain
from utils.files import require_regular

UInt8Array = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

MAX_PIXELS = 178_956_970
"""Pillow's own limit: a file of one megabyte can hold gigabytes of equal pixels."""
# Beyond twice as many Pillow raises; what is between is told here, not by its warning.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises over files that it cannot decode."""


@lru_cache
def make_palette(num_classes: int) -> tuple[Colour, ...]:
    """The colour map of PASCAL VOC (as its development kit makes it): one RGB colour an id, black for 0."""

    def spread_bits(class_id: int, channel: int) -> int:
        return sum((class_id >> (3 * i + channel) & 1) << (7 - i) for i in range(8))

    return tuple((spread_bits(i, 0), spread_bits(i, 1), spread_bits(i, 2)) for i in range(num_classes))


def read_bytes(path: Path) -> bytes:
    """All of a file; an OSError names it."""
    require_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        error.filename = str(path)  # opening names the file, reading does not
        raise


def open_mask(path: Path, in_colour: bool = False) -> Image.Image:
    """A mask, decoded: an 8-bit PNG of one channel, grey or with a palette; with `in_colour` it may be RGB.

    Raises:
        DataError: the file is none of these, or Pillow cannot decode it.
        OSError: it cannot be opened.
    """
    content = read_bytes(path)
    try:
        # Not OpenCV's decoder, which turns a palette into colours.
        with Image.open(io.BytesIO(content)) as image:
            problem = describe_too_large(image.size) or describe_mask_format(image, in_colour)
            if problem is None:
                image.load()
                return image
    except UNDECODABLE as error:
        raise DataError(describe_undecodable(path, "a mask", error)) from error
    raise DataError(f"{path}: {problem}")


def describe_too_large(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> str | None:
    """What is said of an image of this (width, height) that has more pixels than are read; None for the others."""
    width, height = size
    if width * height <= max_pixels:
        return None
    return (
        f"{width}x{height} are {width * height / 1e6:.0f} million pixels, and {max_pixels / 1e6:.0f} million are read "
        "at most; cut it into tiles, its mask alike, or scale both down"
    )


def describe_mask_format(image: ImageFile.ImageFile, in_colour: bool = False) -> str | None:
    """What keeps an opened file from being a mask; None for an 8-bit grey PNG and for any with a palette.

    With `in_colour`, 8-bit RGB PNGs are masks, too.
    """
    bits = ""
    if image.format == "PNG":
        # Pillow opens grey of 2 and 4 bits as mode L, too, and stretches it to 0..255: the ids would be wrong.
        raw_mode = str(image.tile[0][3])
        if image.mode == "P" or (image.mode, raw_mode) == ("L", "L"):
            return None
        if in_colour and (image.mode, raw_mode) == ("RGB", "RGB"):
            return None
        bits = f" ({raw_mode})" if raw_mode != image.mode else ""
    found = f"found a {image.format} of mode {image.mode}{bits}"
    if in_colour:
        return (
            "a mask must be an 8-bit PNG, of one channel (palette or grey) that holds class ids or of RGB in the "
            f"colours of classes.yaml; {found}; save it as one"
        )
    remedy = "save the ids as one"
    if image.format == "PNG" and image.mode == "RGB":
        remedy += ", or in a data set of your own list the colours in classes.yaml"
    return f"a mask must be an 8-bit PNG with one channel (palette or grey) that holds class ids; {found}; {remedy}"


def describe_undecodable(path: Path | str, what: str, error: Exception) -> str:
    """The error for a file ('a mask', 'an image') over which Pillow raised one of UNDECODABLE."""
    reason = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError):
        return f"{path}: {reason}; cut it into tiles, its mask alike, or scale both down"
    if isinstance(error, OSError) and error.errno is not None:
        return explain(error)
    if isinstance(error, UnidentifiedImageError):
        reason = "no format that it knows" if Path(path).stat().st_size else "the file is empty"
    return f"{path}: not {what} that Pillow can decode ({reason}); replace the file"
