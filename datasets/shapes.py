"""A data set that draws itself: coloured shapes, several in an image, from a seed and without files."""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from datasets.config import DataConfig
from datasets.source import Source
from utils.images import Colour, UInt8Array, make_palette

CLASSES = ("background", "disc", "diamond", "triangle", "cross", "ring", "star")
PALETTE = make_palette(len(CLASSES))

_MAX_OBJECTS = 4


MAX_IMAGES = 100_000
"""All are drawn before a run, to see which classes they show."""


class ShapesConfig(DataConfig):
    """What is drawn."""

    num_train: int = Field(600, ge=1, le=MAX_IMAGES)
    """Training images drawn."""
    num_val: int = Field(100, ge=1, le=MAX_IMAGES)
    """Validation images drawn."""
    image_size: int = Field(96, ge=16, le=4096)
    """Side of an image, in pixels."""
    seed: int = Field(0, ge=0, lt=2**32)
    """What is drawn; independent of the run's seed, so that seeds share their data."""


@dataclass(frozen=True)
class ShapesDataset:
    """One split of drawn images: 2 to 4 objects of random classes, so that old and future classes stand in the
    background of every step. A class has its outline and a range of hues that overlaps its neighbours'.

    What image i shows depends on (seed, split, i) only.
    """

    split: str
    num_images: int
    image_size: int
    seed: int = 0
    name: str = "shapes"
    classes: tuple[str, ...] = CLASSES
    palette: tuple[Colour, ...] = PALETTE
    background_is_void: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids, in order."""
        return tuple(f"{self.split}_{index:05d}" for index in range(self.num_images))

    @property
    def label_ids(self) -> frozenset[int]:
        """Data set ids that labels can show."""
        return frozenset(range(len(self.classes)))

    def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
        """Image (H,W,3) uint8 RGB and label (H,W) uint8 in data set ids."""
        index = int(image_id.rpartition("_")[2])
        rng = np.random.default_rng((self.seed, self.split == "val", index))
        image = Image.fromarray(_draw_background(rng, self.image_size))
        label = Image.new("L", image.size, 0)
        for _ in range(rng.integers(2, _MAX_OBJECTS + 1)):
            class_id = int(rng.integers(1, len(CLASSES)))
            radius = self.image_size * rng.uniform(0.14, 0.26)
            centre = rng.uniform(0.6 * radius, self.image_size - 0.6 * radius, size=2)
            angle = rng.uniform(-0.3, 0.3)
            _draw_shape(label, CLASSES[class_id], centre, radius, angle, class_id)
            outline = Image.new("L", image.size, 0)
            _draw_shape(outline, CLASSES[class_id], centre, radius, angle, 255)
            image.paste(_draw_colour(rng, class_id), mask=outline)
        noise = rng.normal(0, 10, size=(self.image_size, self.image_size, 3))
        return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8), np.asarray(label)

    def read_label(self, image_id: str) -> UInt8Array:
        """Label (H,W) uint8 in data set ids."""
        return self.read(image_id)[1]


def _draw_background(rng: np.random.Generator, size: int) -> UInt8Array:
    """A dull slope of light: (H,W,3)."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    slope = rng.uniform(-60, 60) * rows + rng.uniform(-60, 60) * columns
    colour = rng.uniform(80, 170) + rng.uniform(-20, 20, size=3)
    return np.clip(slope[:, :, None] + colour, 0, 255).astype(np.uint8)


def _draw_colour(rng: np.random.Generator, class_id: int) -> tuple[int, int, int]:
    hue = (class_id - 1 + rng.normal(0, 0.3)) / (len(CLASSES) - 1)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_shape(
    canvas: Image.Image, shape: str, centre: np.ndarray, radius: float, angle: float, value: int
) -> None:
    draw = ImageDraw.Draw(canvas)
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "disc":
        draw.ellipse(box, fill=value)
    elif shape == "ring":
        draw.ellipse(box, outline=value, width=max(1, round(0.5 * radius)))
    elif shape == "cross":
        for turn in (0.0, math.pi / 2):
            arm = [(-1.0, -0.33), (1.0, -0.33), (1.0, 0.33), (-1.0, 0.33)]
            draw.polygon(_place(arm, centre, radius, angle + turn), fill=value)
    else:
        corners = {
            "diamond": _corners([1.2] * 4),
            "triangle": _corners([1.2] * 3),
            "star": _corners([1.2, 0.5] * 5),
        }
        draw.polygon(_place(corners[shape], centre, radius, angle), fill=value)


def _corners(radii: list[float]) -> list[tuple[float, float]]:
    """Corners around the origin, one for each radius."""
    turns = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [
        (radius * math.sin(turn), -radius * math.cos(turn)) for radius, turn in zip(radii, turns, strict=True)
    ]


def _place(
    corners: list[tuple[float, float]], centre: np.ndarray, radius: float, angle: float
) -> list[tuple[float, float]]:
    sin, cos = math.sin(angle), math.cos(angle)
    return [
        (float(centre[0] + radius * (x * cos - y * sin)), float(centre[1] + radius * (x * sin + y * cos)))
        for x, y in corners
    ]


def open_split(options: ShapesConfig, split: str, problems: list[str] | None = None) -> ShapesDataset:
    """One split, as the config describes it; nothing of it can be wrong."""
    num_images = options.num_train if split == "train" else options.num_val
    return ShapesDataset(split, num_images, options.image_size, options.seed)


SOURCE = Source(open_split, options=ShapesConfig, classes=CLASSES)
