"""datasets/file_dataset.py: images and masks come out as they lie, and what is wrong is named."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import folder
from datasets.file_dataset import check_libraries, read_image
from datasets.masks import read_mask
from tests.support.data import stripes, write_folder, write_mask, write_sample


def test_image_and_mask_of_different_size_are_refused_with_both_sizes(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat"], {"a": stripes(1, height=16, width=20)}, {})
    write_mask(tmp_path / "masks" / "train" / "a.png", stripes(1, height=16, width=12))
    with pytest.raises(ValueError, match=r"a\.png: the mask is 12x16.*a\.jpg is 20x16"):
        folder.open_split(tmp_path, "train").read("a")


def test_files_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n cut short"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.png: not an image"):
            read_image(broken)
        with pytest.raises(ValueError, match=r"broken\.png: not a mask"):
            read_mask(broken)
    write_mask(broken, np.random.default_rng(0).integers(0, 9, (40, 40), dtype=np.uint8))
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"broken\.png: not a mask"):
        read_mask(broken)


def test_grey_images_and_those_with_alpha_become_rgb(tmp_path: Path) -> None:
    for mode, colour, expected in (("L", 9, (9, 9, 9)), ("RGBA", (1, 2, 3, 255), (1, 2, 3))):
        Image.new(mode, (4, 3), colour).save(tmp_path / "image.png")
        image = read_image(tmp_path / "image.png")
        assert image.shape == (3, 4, 3)
        assert tuple(image[0, 0]) == expected


def test_vanished_files_are_not_called_broken(tmp_path: Path) -> None:
    for read in (read_image, read_mask):
        with pytest.raises(FileNotFoundError, match=r"gone\.png"):
            read(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ImportError("libGL.so.1: cannot open shared object file"), "apt-get install libgl1 libglib2.0-0"),
        (ModuleNotFoundError("No module named 'mmcv'"), "pip install -r requirements.txt"),
    ],
)
def test_a_missing_image_library_gets_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ImportError, remedy: str
) -> None:
    real_import = builtins.__import__

    def failing_import(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "mmcv":
            raise error
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "mmcv", raising=False)
    monkeypatch.setattr(builtins, "__import__", failing_import)
    write_sample(tmp_path / "a.jpg", tmp_path / "a.png", stripes(1))
    for read in (lambda: read_image(tmp_path / "a.png"), check_libraries):
        with pytest.raises(ImportError) as caught:
            read()
        assert remedy in str(caught.value)
        assert str(error) in str(caught.value)
        assert "\n" not in str(caught.value)
