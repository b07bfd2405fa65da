"""Draw the data of docs/training.md, 'Rare classes': shapes of which one, the star, is small and seldom.

Run from the repository as `python -m docs.results.rare_shapes FOLDER`; FOLDER becomes a data.root of data.name=folder.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import shapes

SIDE = 96
NAMES = ("disc", "diamond", "triangle", "cross", "star")


def draw(split: str, index: int) -> tuple[Image.Image, Image.Image]:
    """Two or three large shapes; in every fifth image a small star, too. Returns image and mask."""
    rng = np.random.default_rng((7, split == "val", index))
    image = Image.fromarray(shapes._draw_background(rng, SIDE))
    label = Image.new("L", image.size, 0)
    todo = [(NAMES[c - 1], rng.uniform(0.14, 0.26)) for c in rng.integers(1, 5, rng.integers(2, 4))]
    if index % 5 == 0:
        todo.append(("star", rng.uniform(0.07, 0.10)))
    for name, share in todo:
        radius = SIDE * share
        centre, angle = rng.uniform(0.6 * radius, SIDE - 0.6 * radius, size=2), rng.uniform(-0.3, 0.3)
        shapes._draw_shape(label, name, centre, radius, angle, 1 + NAMES.index(name))
        outline = Image.new("L", image.size, 0)
        shapes._draw_shape(outline, name, centre, radius, angle, 255)
        image.paste(shapes._draw_colour(rng, shapes.CLASSES.index(name)), mask=outline)
    noisy = np.asarray(image) + rng.normal(0, 10, size=(SIDE, SIDE, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), label


def main(root: Path) -> None:
    """Write 300 training and 150 validation images."""
    for split, count in (("train", 300), ("val", 150)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, label = draw(split, index)
            image.save(root / "images" / split / f"{split}{index:03}.png")
            label.save(root / "masks" / split / f"{split}{index:03}.png")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
