"""Masks: PNGs whose pixels are numbers or colours, and the class ids that these mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from utils.errors import DataError
from utils.images import Colour, UInt8Array, open_mask
from utils.labels import IGNORE_INDEX

_MAX_COLOURS_NAMED = 5
_ALL_BYTES = bytes(range(256))
_ALL_NUMBERS = frozenset(_ALL_BYTES) - {IGNORE_INDEX}


@dataclass(frozen=True)
class MaskCoding:
    """The data set id that each pixel of a mask means, 255 where it is ignored.

    ids: that of every number that a mask of one channel may hold, by number; 255 it may hold always.
    colours: that of every colour that an RGB mask may hold; where there are none, masks in colour are refused.
    palette: the colour in which the data set draws every number; a mask whose palette shows another has been
    renumbered. () where it draws none.
    """

    ids: tuple[int, ...]
    colours: tuple[tuple[Colour, int], ...] = ()
    palette: tuple[Colour, ...] = ()

    @property
    def label_ids(self) -> frozenset[int]:
        """The ids that masks can show, 255 left out."""
        return frozenset({*self.ids, *(class_id for _, class_id in self.colours)}) - {IGNORE_INDEX}

    def decode(self, path: Path | str, pixels: UInt8Array) -> UInt8Array:
        """Data set ids of numbers, of any shape but three axes, or (H,W) of colours (H,W,3); all uint8.

        Raises DataError for a number or a colour that has no id; it names `path`, where the mask lies.
        """
        return self._decode_colours(path, pixels) if pixels.ndim == 3 else self._decode_numbers(path, pixels)

    def pixels_of(self, path: Path | str, image: Image.Image) -> UInt8Array:
        """The pixels of an opened mask as `decode` takes them: numbers (H,W) or colours (H,W,3).

        Numbers whose palette shows another colour than that of their class are given as colours: a mask in colour
        that a program has saved with a palette counts its colours as it likes. 255 is ignored in any colour.
        Raises DataError naming `path` for a number in another colour than the data set's, or in none.
        """
        pixels: UInt8Array = np.array(image, dtype=np.uint8)
        if image.mode != "P" or not (self.colours or self.palette):
            return pixels
        palette = np.zeros((256, 3), np.uint8)
        entries = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
        palette[: len(entries)] = entries
        numbers = distinct_numbers(pixels)
        beyond = [n for n in numbers if n >= len(entries)]
        if beyond:
            raise DataError(
                f"{path}: found number {beyond[0]}, which has no colour in the mask's palette of {len(entries)}; the "
                "file is damaged: save it anew"
            )
        if not self.colours:
            self._check_palette(path, numbers, palette)
            return pixels
        meant = set(self.colours)
        own = {n for n, class_id in enumerate(self.ids) if ((*palette[n].tolist(),), class_id) in meant}
        return palette[pixels] if set(numbers) - own else pixels

    def _check_palette(self, path: Path | str, numbers: Sequence[int], palette: UInt8Array) -> None:
        """Raise DataError for a number in another colour than the data set's; shades of grey are no colours."""
        shown = {n: (*palette[n].tolist(),) for n in numbers if n < len(self.palette)}
        wrong = [n for n, colour in shown.items() if colour not in (self.palette[n], (n, n, n))]
        if wrong:
            raise DataError(
                f"{path}: shows number {wrong[0]} in the colour {shown[wrong[0]]}, which the data set draws in "
                f"{self.palette[wrong[0]]}; a program has renumbered the mask: bring back the original, save it with "
                "the data set's palette, or read it by its colours (data.name=folder with a classes.yaml)"
            )

    def _decode_numbers(self, path: Path | str, numbers: UInt8Array) -> UInt8Array:
        # One more, and 255 wraps to 0: what is allowed lies up to the number of ids.
        if (numbers + np.uint8(1)).max(initial=0) > len(self.ids):
            unknown = np.unique(numbers[(numbers >= len(self.ids)) & (numbers != IGNORE_INDEX)]).tolist()
            raise DataError(
                f"{path}: found ids {unknown}; allowed are 0 to {len(self.ids) - 1}, "
                f"and {IGNORE_INDEX} (ignored); correct the mask or the list of classes"
            )
        if self.ids == tuple(range(len(self.ids))):
            return numbers
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[: len(self.ids)] = self.ids
        return remap(numbers, table)

    def _decode_colours(self, path: Path | str, pixels: UInt8Array) -> UInt8Array:
        red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
        codes = red << 16 | green << 8 | blue
        found = _colour_table(self.colours).take(codes)
        if (found == 0).any():
            raise DataError(_describe_unknown_colours(path, codes[found == 0]))
        return (found - 1).astype(np.uint8)


def distinct_numbers(pixels: UInt8Array) -> list[int]:
    """The values of pixels, of any shape, sorted, 255 left out."""
    flat = pixels.reshape(-1)
    num_words = flat.size // 8
    words = flat[: 8 * num_words].view(np.uint64)
    # Masks are mostly runs of one class: what equals its neighbour needs no second look.
    changes = words[:-1][words[1:] != words[:-1]].tobytes() + flat[max(0, 8 * num_words - 8) :].tobytes()
    # Striking the bytes found from all bytes leaves those that are absent: faster than counting them.
    return sorted(_ALL_NUMBERS.difference(_ALL_BYTES.translate(None, delete=changes)))


@lru_cache(maxsize=1)
def _colour_table(colours: tuple[tuple[Colour, int], ...]) -> npt.NDArray[np.uint16]:
    """Table from 0xRRGGBB to 1 + id, 0 where a colour has none. Only the pages that are looked at take memory."""
    table = np.zeros(1 << 24, np.uint16)
    for (red, green, blue), class_id in colours:
        table[red << 16 | green << 8 | blue] = 1 + class_id
    return table


def _describe_unknown_colours(path: Path | str, codes: npt.NDArray[np.uint32]) -> str:
    values, counts = np.unique(codes, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_MAX_COLOURS_NAMED]
    named = ", ".join(f"{_unpack(values[i])} in {_count(counts[i])}" for i in most)
    more = f" and {len(values) - len(most)} more" if len(values) > len(most) else ""
    return (
        f"{path}: found colours that no class has: {named}{more}; list them in classes.yaml, or correct the mask "
        "(edges must not be smoothed; numbers may have a palette of the classes' colours, or are saved as 8-bit grey)"
    )


def _unpack(code: np.uint32) -> Colour:
    return int(code) >> 16, int(code) >> 8 & 255, int(code) & 255


def _count(pixels: np.intp) -> str:
    return f"{pixels} pixel{'s' if pixels > 1 else ''}"


def remap(label: UInt8Array, table: UInt8Array) -> UInt8Array:
    """Look every id of a label up in a table (256,): table[label], in a fifth of its time."""
    return np.frombuffer(label.tobytes().translate(table.tobytes()), np.uint8).reshape(label.shape)


def read_mask(path: Path, coding: MaskCoding = MaskCoding(()), in_colour: bool = False) -> UInt8Array:
    """The pixels of a mask, uint8: numbers (H,W) of a palette or a grey PNG, or RGB (H,W,3).

    RGB is allowed with `in_colour`, and with a coding that has colours, as whose `pixels_of` they are given.

    Raises:
        DataError: the file is none of these, or Pillow cannot decode it.
        OSError: it cannot be opened.
    """
    return coding.pixels_of(path, open_mask(path, in_colour or bool(coding.colours)))
