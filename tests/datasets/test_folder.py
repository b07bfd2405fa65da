"""datasets/folder.py: one's own images, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from datasets import folder
from datasets.file_dataset import read_image
from tests.support.data import stripes, write_folder


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp", ".TIF", ".tiff", ".gif", ".avif"]
)
def test_folder_reads_every_image_format(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow does not write AVIF")
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


def test_the_first_frame_of_a_gif_is_its_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert image.shape == (4, 6, 3)
    assert image[0, 0].tolist() == [250, 0, 0]
    (tmp_path / "b.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:20])
    with pytest.raises(ValueError, match=r"b\.gif: not an image that Pillow can decode"):
        read_image(tmp_path / "b.gif")


def test_files_that_are_left_out_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat"], {"a": stripes(1)}, {"b": stripes(1)})
    assert folder.open_split(tmp_path, "train").remarks == ()
    for name in ("notes.txt", "b.heic", ".hidden.heic", "Thumbs.db"):
        (tmp_path / "images" / "train" / name).touch()
    (tmp_path / "masks" / "train" / "b.tif").touch()
    more = tmp_path / "images" / "train" / "more"
    more.mkdir()
    (tmp_path / "images" / "train" / "circle").symlink_to("circle")
    subfolder, images, masks = folder.open_split(tmp_path, "train").remarks
    assert subfolder == f"{more}: is a folder, in which nothing is looked for; move its files up"
    assert images.startswith(f"{tmp_path / 'images' / 'train'}: left out, as images are .avif, .bmp, .gif")
    assert images.endswith(": 'b.heic', 'circle', 'notes.txt'")
    assert masks == f"{tmp_path / 'masks' / 'train'}: left out, as masks are .png in any case: 'b.tif'"


def test_a_file_of_another_format_beside_a_missing_one_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat"], {"a": stripes(1), "b": stripes(1)}, {"c": stripes(0)})
    (tmp_path / "images" / "train" / "a.jpg").rename(tmp_path / "images" / "train" / "a.heic")
    told = r"train/a\.jpg: this image is missing, but a\.heic lies there, in a format that is not read: save it as JPG"
    with pytest.raises(FileNotFoundError, match=told):
        folder.open_split(tmp_path, "train")
    problems: list[str] = []
    (tmp_path / "masks" / "train" / "b.png").rename(tmp_path / "masks" / "train" / "b.bmp")
    folder.open_split(tmp_path, "train", problems)
    assert problems[1].endswith(
        "b.png: this mask is missing, but b.bmp lies there, in a format that is not read: save it as PNG"
    )
