"""Bad image, mask and list files: every one is named in a sentence; odd ones that can be read are."""

from __future__ import annotations

import io
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import folder, voc
from datasets.class_index import index_classes
from datasets.file_dataset import read_image, read_sound_image
from datasets.incremental import StepDataset, ValidationDataset
from datasets.masks import read_mask
from datasets.transforms import EvaluateTransform, TrainTransform
from tests.support.data import stripes, write_folder, write_mask, write_voc
from utils.errors import DataError

CLASSES = ["pear", "kiwi"]
IDENTITY = np.arange(256, dtype=np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)


def jpeg(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 40, 1000])
def test_a_cut_jpeg_is_refused_by_name(tmp_path: Path, progressive: bool, lost: int) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(progressive=progressive)[:-lost])
    with pytest.raises(DataError, match=r"image\.jpg: not an image .*replace the file"):
        read_image(path)


def test_a_cut_jpeg_is_refused_where_opencv_would_fill_it_with_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.jpg"
    thumbnail = b"\xff\xd8\xff\xda thumbnail \xff\xd9"
    for content, is_whole in ((jpeg(), True), (jpeg() + b"trailer", True), (jpeg()[:-30], False)):
        # A thumbnail in the header has an end marker of its own.
        path.write_bytes(content[:2] + thumbnail + content[2:])
        monkeypatch.setattr("mmcv.imfrombytes", lambda *_, **__: NOISE)
        if is_whole:
            assert read_image(path) is NOISE
        else:
            with pytest.raises(DataError, match="the JPEG is cut short"):
                read_image(path)


def test_an_empty_file_is_called_empty_wherever_it_is_met(tmp_path: Path) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1), "b": stripes(1)}, {})
    image, mask = root / "images" / "train" / "a.jpg", root / "masks" / "train" / "b.png"
    image.write_bytes(b"")
    mask.write_bytes(b"")
    for read, path in ((read_image, image), (read_mask, mask)):
        with pytest.raises(
            DataError, match=rf"{path.name}: not an? .*\(the file is empty\); replace the file"
        ):
            read(path)
    with pytest.raises(DataError, match=r"a\.jpg: .*empty.*\n.*b\.png: .*empty"):
        index_classes(folder.open_split(root, "train"), None, 0, progress=False)


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", ".jpg", 77, (77, 77, 77)),
        ("L", ".png", 77, (77, 77, 77)),
        ("LA", ".png", (77, 0), (77, 77, 77)),
        ("1", ".png", 1, (255, 255, 255)),
        ("I;16", ".png", 0x4D00, (77, 77, 77)),
        ("RGBA", ".png", (10, 20, 30, 0), (10, 20, 30)),
        ("RGBA", ".webp", (77, 77, 77, 255), (77, 77, 77)),
        ("P", ".png", 5, None),
        ("CMYK", ".jpg", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_images_of_every_mode_become_rgb(
    tmp_path: Path, mode: str, suffix: str, colour: Any, expected: tuple[int, ...] | None
) -> None:
    path = tmp_path / f"image{suffix}"
    image = Image.new(mode, (16, 8), colour)
    image.save(path)
    pixels = read_image(path)
    assert (pixels.shape, pixels.dtype) == ((8, 16, 3), np.uint8)
    colours = np.asarray(image.convert("RGB")) if expected is None else np.full(pixels.shape, expected)
    np.testing.assert_allclose(pixels.astype(int), colours, atol=3)


@pytest.mark.parametrize(("bits", "num_ids"), [(2, 4), (4, 16)])
def test_a_grey_mask_of_few_bits_is_refused_because_decoders_stretch_its_ids(
    tmp_path: Path, bits: int, num_ids: int
) -> None:
    path = tmp_path / "mask.png"
    ids = stripes(*range(num_ids))
    image = Image.fromarray(ids)
    image.putpalette([0, 0, 0] * num_ids)
    image.save(path, bits=bits)
    # Pillow writes few bits with a palette only: its header is turned into that of a grey file (colour type 0).
    content = path.read_bytes()
    header = content[12:25] + b"\0" + content[26:29]
    path.write_bytes(
        content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[content.index(b"IDAT") - 4 :]
    )
    assert np.array_equal(np.asarray(Image.open(path)), ids * (255 // (num_ids - 1)))
    with pytest.raises(DataError, match=rf"mask\.png: .*8-bit.*found a PNG of mode L \(L;{bits}\)"):
        read_mask(path)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_palette_mask_of_few_bits_keeps_its_ids(tmp_path: Path, bits: int) -> None:
    image = Image.fromarray(stripes(0, 1, 2, 3))
    image.putpalette([9 * i for i in range(4) for _ in range(3)])
    image.save(tmp_path / "mask.png", bits=bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), stripes(0, 1, 2, 3))


@pytest.mark.parametrize("kind", ["I;16", "jpeg"])
def test_masks_of_16_bits_and_lossy_ones_are_refused_on_both_ways_in(tmp_path: Path, kind: str) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1)}, {})
    path = root / "masks" / "train" / "a.png"
    if kind == "jpeg":
        Image.fromarray(stripes(1)).save(path, "JPEG")
    else:
        Image.fromarray(stripes(1).astype(np.uint16)).save(path)
    dataset = folder.open_split(root, "train")
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        with pytest.raises(DataError, match=r"a\.png: a mask must be an 8-bit PNG .*; found a .*; save"):
            read()


def test_an_id_that_appears_after_the_index_was_made_is_refused_when_it_is_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(0, 1, 255)}, {})
    dataset = folder.open_split(root, "train")
    assert dataset.read("a")[1].max() == 255
    write_mask(root / "masks" / "train" / "a.png", stripes(0, 3, 254, 255))
    with pytest.raises(DataError, match=r"a\.png: found ids \[3, 254\]; allowed are 0 to 2, and 255"):
        dataset.read("a")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_and_its_mask_taken_as_it_lies(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, 16:] = 255  # a bright corner: right, top
    mask = (upright[:, :, 0] // 255).astype(np.uint8)
    write_mask(tmp_path / "masks" / "train" / "a.png", mask)
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(turn_back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images" / "train").mkdir(parents=True)
    stored.save(tmp_path / "images" / "train" / "a.jpg", exif=exif, quality=95)
    (tmp_path / "classes.txt").write_text("pear\n")
    dataset = folder.open_split(tmp_path, "train")
    image, label = dataset.read("a")
    np.testing.assert_array_equal(image[:, :, 0] > 127, label == 1)
    assert index_classes(dataset, None, 0, progress=False) == {"a": {0, 1}}


def test_a_mask_drawn_on_an_image_before_it_was_turned_is_told_so(tmp_path: Path) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1, height=6, width=4)}, {})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(root / "images" / "train" / "a.jpg", exif=exif)
    dataset = folder.open_split(root, "train")
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        with pytest.raises(DataError, match=r"mask is 4x6 .* is 6x4; .*EXIF orientation.*turn the mask"):
            read()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_name_that_is_not_utf_8_is_refused_when_files_are_listed(tmp_path: Path, kind: str) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1)}, {})
    suffix = {"images": b".jpg", "masks": b".png"}[kind]
    Path(os.fsdecode(os.fsencode(root / kind / "train") + b"/caf\xe9" + suffix)).write_bytes(b"")
    with pytest.raises(
        DataError, match=rf"{kind}/train: the file name b'caf\\xe9\{suffix.decode()}' is not UTF-8"
    ):
        folder.open_split(root, "train")


def test_lists_that_are_not_utf_8_are_refused_by_name(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a": stripes(1)}, {"b": stripes(1)})
    (root / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"val\.txt: not UTF-8 text .*save it as UTF-8"):
        voc.open_split(tmp_path / "voc", "val")
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"classes\.txt: not UTF-8 text"):
        folder.open_split(tmp_path, "train")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (7, 3), (15, 16)])
def test_images_of_one_pixel_and_smaller_than_the_crop_are_trained_and_evaluated(
    tmp_path: Path, height: int, width: int
) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(2, height=height, width=width)}, {}, suffix=".png")
    source = folder.open_split(root, "train")
    transform = TrainTransform(16, 0.5, 2.0, (1.0, 2.0, 3.0))
    image, label, problem = StepDataset(source, ["a"], IDENTITY, transform, seed=0, step=0)[(0, 0)]
    assert (image.shape, label.shape, problem) == ((3, 16, 16), (16, 16), "")
    assert set(label.unique().tolist()) <= {2, 255}
    assert 2 in label
    for mode in ("center_crop", "whole"):
        dataset = ValidationDataset(source, ["a"], IDENTITY, EvaluateTransform(16, mode))
        image, label, problem = dataset[0]
        assert min(image.shape[1:]) == 16
        assert label.shape == ((16, 16) if mode == "center_crop" else (height, width))
        assert (label.unique().tolist(), problem) == ([2], "")


@pytest.mark.parametrize(("width", "is_fine"), [(100, True), (101, False)])
def test_an_image_that_scaling_would_blow_up_is_refused(tmp_path: Path, width: int, is_fine: bool) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1, height=1, width=width)}, {}, suffix=".png")
    dataset = folder.open_split(root, "train")
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        if is_fine:
            read()
        else:
            with pytest.raises(DataError, match=r"a\.png: the image is 101x1 .* at most 100 times the other"):
                read()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_damaged_in_the_middle_is_refused_where_data_are_checked(
    tmp_path: Path, progressive: bool
) -> None:
    content = bytearray(jpeg(progressive=progressive, quality=95))
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_sound_image(path), read_image(path))
    start, end = int(0.45 * len(content)), int(0.6 * len(content))
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    read_image(path)  # libjpeg goes on, and only warns
    with pytest.raises(DataError, match=r"image\.jpg: the JPEG is damaged \(Corrupt JPEG data: .*replace"):
        read_sound_image(path)
