"""Annotations for tools/prepare_folder.py, and what it makes of them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import folder
from tests.support.data import Mask
from tools.prepare_folder import main


def memory_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for one of many examples, in memory where the system has such a place: disks take long to sync."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


NO_WORKERS = ["--num-workers", "0"]


def write_image(path: Path, width: int = 8, height: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.stem) + ord(path.stem[-1])).integers(0, 256, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def pixels(*rows: str) -> Mask:
    """A mask as it looks: digits, '.' for background, '#' for 255."""
    table = {".": 0, "#": 255}
    return np.array([[table.get(c) if c in table else int(c) for c in row] for row in rows], np.uint8)


def read(root: Path, image_id: str) -> Mask:
    """The label of an image as data.name=folder reads it, from whichever split holds it."""
    for split in ("train", "val"):
        if (root / "masks" / split / f"{image_id}.png").exists():
            return folder.open_split(root, split).read(image_id)[1]
    raise AssertionError(image_id)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the tool says as it ends with 2."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), *NO_WORKERS])
    assert caught.value.code == 2
    return capsys.readouterr().err


def shape(label: str, *points: tuple[float, float], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": [*map(list, points)], "shape_type": kind, "group_id": None, **more}


def write_labelme(path: Path, *shapes: dict[str, Any], image: str | None = None, **more: Any) -> None:
    if image is None:
        image = f"{path.stem}.png"
        write_image(path.parent / image)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"imageHeight": 6, "imageWidth": 8}
    path.write_text(
        json.dumps(
            {"version": "5.5.0", "imagePath": image, "imageData": None, "shapes": shapes, **size, **more}
        )
    )


SQUARE = ((1, 1), (4, 1), (4, 3), (1, 3))


def labelme(source: Path, output: Path, *more: str) -> None:
    assert main(["labelme", str(source), "--output", str(output), *NO_WORKERS, *more]) == 0
