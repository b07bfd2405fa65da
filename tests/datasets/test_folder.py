"""datasets/folder.py: one's own images, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import folder
from tests.support.data import stripes, write_folder


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp"])
def test_folder_reads_every_image_format(tmp_path: Path, suffix: str) -> None:
    write_folder(tmp_path, ["cat", "dog"], {"a": stripes(0, 1)}, {"b": stripes(2)}, suffix)
    dataset = folder.open_split(tmp_path, "train")
    assert dataset.classes == ("background", "cat", "dog")
    assert dataset.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    image, label = dataset.read("a")
    assert image[0, 15, 0] > 100 > image[0, 15, 2]  # class 1 is painted red: the order is RGB
    np.testing.assert_array_equal(label, stripes(0, 1))


def test_what_a_folder_lacks_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"classes\.txt: no such file.*images/\{train,val\}"):
        folder.open_split(tmp_path, "train")
    write_folder(tmp_path, ["cat"], {"a": stripes(1), "b": stripes(1)}, {"c": stripes(0)})
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/a\.jpg: this image is missing"):
        folder.open_split(tmp_path, "train")
    for file in tmp_path.glob("*/val/*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"images/val: the split is empty.*Expected"):
        folder.open_split(tmp_path, "val")


def test_two_images_with_one_id_are_refused_and_hidden_files_skipped(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat"], {"a": stripes(1)}, {"c": stripes(0)})
    (tmp_path / "images" / "train" / "._a.jpg").write_bytes(b"resource fork")
    assert folder.open_split(tmp_path, "train").ids == ("a",)
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png share the image id 'a'"):
        folder.open_split(tmp_path, "train")
