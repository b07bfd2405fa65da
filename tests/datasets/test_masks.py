"""datasets/masks.py: what numbers and colours of masks mean, and how wrong ones are named."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import folder
from datasets.class_index import index_classes
from datasets.masks import MaskCoding, distinct_numbers, read_mask, remap
from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.data import Mask, stripes, write_folder
from tools import check_data
from utils.errors import DataError

YAML = """\
- {name: background, color: [0, 0, 0]}
- {name: road, color: [128, 64, 128]}
- {name: sign, color: [220, 220, 0]}
- {name: ignore, color: [255, 255, 255]}
"""
COLOURS = {0: (0, 0, 0), 1: (128, 64, 128), 2: (220, 220, 0), 255: (255, 255, 255)}


def in_colour(mask: Mask) -> Mask:
    """(H,W,3) of (H,W)."""
    table = np.zeros((256, 3), np.uint8)
    for class_id, colour in COLOURS.items():
        table[class_id] = colour
    return table[mask]


def palette_of(*class_ids: int) -> bytes:
    """A palette whose entries are the colours of classes, padded with black."""
    return b"".join(bytes(COLOURS[class_id]) for class_id in class_ids).ljust(768, b"\0")


def write_coloured(root: Path, train: dict[str, Mask], val: dict[str, Mask], text: str = YAML) -> Path:
    """A folder data set with RGB masks and classes.yaml."""
    write_folder(root, [], train, val)
    (root / "classes.txt").unlink()
    (root / "classes.yaml").write_text(text)
    for split, masks in (("train", train), ("val", val)):
        for image_id, mask in masks.items():
            Image.fromarray(in_colour(mask)).save(root / "masks" / split / f"{image_id}.png")
    return root


def test_colours_become_the_positions_of_their_classes(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    dataset = folder.open_split(write_coloured(tmp_path, {"a": mask}, {"b": mask}), "train")
    assert dataset.classes == ("background", "road", "sign")
    assert dataset.palette == ((0, 0, 0), (128, 64, 128), (220, 220, 0))
    np.testing.assert_array_equal(dataset.read("a")[1], mask)
    np.testing.assert_array_equal(dataset.read_label("a"), mask)
    assert dataset.read_label("a").dtype == np.uint8
    assert index_classes(dataset, None, 0, progress=False) == {"a": {0, 1, 2}}


def test_masks_of_numbers_may_lie_beside_those_in_colour(tmp_path: Path) -> None:
    root = write_coloured(tmp_path, {"colour": stripes(0, 1)}, {"v": stripes(1)})
    palette = Image.fromarray(stripes(2, 255))
    palette.putpalette(palette_of(0, 1, 2))
    palette.save(root / "masks" / "train" / "palette.png")
    Image.fromarray(stripes(1, 2)).save(root / "masks" / "train" / "grey.png")
    for name in ("palette", "grey"):
        (root / "images" / "train" / f"{name}.jpg").symlink_to(root / "images" / "train" / "colour.jpg")
    dataset = folder.open_split(root, "train")
    np.testing.assert_array_equal(dataset.read("palette")[1], stripes(2, 255))
    np.testing.assert_array_equal(dataset.read("grey")[1], stripes(1, 2))
    found = index_classes(dataset, None, 2, progress=False)
    assert found == {"colour": {0, 1}, "grey": {1, 2}, "palette": {2}}


def test_a_mask_in_colour_that_was_saved_with_a_palette_is_read_by_its_colours(tmp_path: Path) -> None:
    mask = np.array([[0, 2, 1, 255], [2, 2, 1, 0]], np.uint8)
    root = write_coloured(tmp_path, {"quantised": mask, "ordered": mask}, {"v": mask})
    quantised = Image.fromarray(in_colour(mask)).quantize(4)
    assert np.asarray(quantised).tolist() != mask.tolist()
    quantised.save(root / "masks" / "train" / "quantised.png")
    # In the order of the list, whose last line is no class.
    ordered = Image.fromarray(np.where(mask == 255, 3, mask).astype(np.uint8))
    ordered.putpalette(palette_of(0, 1, 2, 255))
    ordered.save(root / "masks" / "train" / "ordered.png")
    dataset = folder.open_split(root, "train")
    for name in ("quantised", "ordered"):
        np.testing.assert_array_equal(dataset.read(name)[1], mask)
        np.testing.assert_array_equal(dataset.read_label(name), mask)
    assert index_classes(dataset, None, 0, progress=False) == {"ordered": {0, 1, 2}, "quantised": {0, 1, 2}}


def test_a_palette_with_a_colour_in_use_that_no_class_has_is_refused_by_all_that_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {name: stripes(0, 1, 2, width=16 + i) for i, name in enumerate("abcd")}
    root = write_coloured(tmp_path, masks, masks)
    path = root / "masks" / "train" / "a.png"
    image = Image.fromarray(masks["a"])
    colours = bytearray(palette_of(0, 1, 2, 1))
    colours[3:6] = 128, 0, 0
    image.putpalette(colours)
    image.save(path)
    expected = f"{path}: found colours that no class has: (128, 0, 0) in 80 pixels; list them in classes.yaml"
    dataset = folder.open_split(root, "train")
    for read in (
        lambda: dataset.read("a"),
        lambda: dataset.read_label("a"),
        lambda: index_classes(dataset, None, 0, progress=False),
    ):
        with pytest.raises(DataError, match=re.escape(expected)):
            read()
    fields = ["data.name=folder", f"data.root={root}", "task=[[road], [sign]]"]
    assert check_data.main(["--config", str(write_tiny_config(tmp_path)), *set_fields(*fields)]) == 2
    assert expected in capsys.readouterr().out


def test_without_colours_the_list_is_that_of_masks_of_numbers(tmp_path: Path) -> None:
    write_coloured(tmp_path, {"a": stripes(0, 1)}, {}, "- {name: background}\n- {name: road}\n")
    dataset = folder.open_split(tmp_path, "train")
    assert dataset.palette == ((0, 0, 0), (128, 0, 0))
    with pytest.raises(DataError, match=r"a\.png: a mask must be .* found a PNG of mode RGB; save the ids"):
        dataset.read("a")


def test_colours_are_looked_up_as_a_slow_search_does() -> None:
    rng = np.random.default_rng(0)
    colours = rng.choice(1 << 24, 40, replace=False)
    table = tuple(((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255), i) for i, c in enumerate(colours))
    label = rng.integers(0, 40, (31, 17))
    pixels = np.array([colour for colour, _ in table], np.uint8)[label]
    np.testing.assert_array_equal(MaskCoding((), table).decode("a.png", pixels), label)


def spoil(root: Path) -> Path:
    """Seven pixels of one colour and one of another that no class has."""
    path = root / "masks" / "train" / "a.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, :7], pixels[1, 0] = (1, 2, 3), (128, 64, 129)
    Image.fromarray(pixels).save(path)
    return path


def test_an_unknown_colour_is_named_with_its_file_and_pixels_before_training(tmp_path: Path) -> None:
    masks = {name: stripes(0, 1, 2) for name in "abcd"}
    root = write_coloured(tmp_path / "data", masks, masks)
    path = spoil(root)
    fields = ["data.name=folder", f"data.root={root}", "task=[[road], [sign]]"]
    result = call_main("--config", write_tiny_config(tmp_path), "--dry-run", *set_fields(*fields))
    assert result.returncode == 2
    expected = f"{path}: found colours that no class has: (1, 2, 3) in 7 pixels, (128, 64, 129) in 1 pixel; list them"
    assert expected in result.stderr
    with pytest.raises(DataError, match=r"\(1, 2, 3\) in 7 pixels, \(128, 64, 129\) in 1 pixel; list them"):
        folder.open_split(root, "train").read("a")


def test_check_data_lists_unknown_colours_among_all_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {name: stripes(0, 1, 2, width=16 + i) for i, name in enumerate("abcde")}
    val = {f"v{name}": stripes(2, 1, 0, width=16 + i) for i, name in enumerate("abcde")}
    root = write_coloured(tmp_path / "data", masks, val)
    fields = ["data.name=folder", f"data.root={root}", "task=[[road], [sign]]"]
    arguments = ["--config", str(write_tiny_config(tmp_path)), *set_fields(*fields)]
    assert check_data.main(arguments) == 0
    path = spoil(root)
    Image.fromarray(in_colour(stripes(1, width=9))).save(root / "masks" / "val" / "vb.png")
    assert check_data.main(arguments) == 2
    unknown, size, _ = capsys.readouterr().out.splitlines()[-3:]
    assert unknown.startswith(f"{path}: found colours that no class has: (1, 2, 3) in 7 pixels")
    assert "vb.png: the mask is 9x16 (width x height), but its image" in size


def test_of_many_unknown_colours_the_most_frequent_are_named() -> None:
    pixels = np.zeros((4, 10, 3), np.uint8)
    pixels[0, :, 0] = range(1, 11)
    pixels[1, :, 0] = 7
    with pytest.raises(
        DataError, match=r"^x\.png: found .* has: \(7, 0, 0\) in 11 pixels, \(1, 0, 0\).* and 5 more; "
    ):
        MaskCoding((0,), (((0, 0, 0), 0),)).decode("x.png", pixels)


def test_a_changed_colour_is_not_hidden_by_what_was_read_before(tmp_path: Path) -> None:
    root = write_coloured(tmp_path / "data", {"a": stripes(0, 1)}, {})
    assert index_classes(folder.open_split(root, "train"), tmp_path, 0, progress=False) == {"a": {0, 1}}
    swapped = (
        YAML.replace("[128, 64, 128]", "[1]")
        .replace("[220, 220, 0]", "[128, 64, 128]")
        .replace("[1]", "[1, 1, 1]")
    )
    (root / "classes.yaml").write_text(swapped)
    assert index_classes(folder.open_split(root, "train"), tmp_path, 0, progress=False) == {"a": {0, 2}}


def test_colours_with_alpha_or_of_16_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.new("RGBA", (4, 4)).save(path)
    with pytest.raises(
        DataError, match=r"or of RGB in the colours of classes\.yaml; found a PNG of mode RGBA; save"
    ):
        read_mask(path, in_colour=True)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00" + bytes(12))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"found a PNG of mode RGB \(RGB;16B\)"):
        read_mask(path, in_colour=True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_a_mask_that_is_not_one_channel_of_8_bits_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "mask.png"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(ValueError, match=r"mask\.png: a mask must be an 8-bit PNG with one channel"):
        read_mask(path)


def test_remapping_is_a_look_up_in_the_table() -> None:
    rng = np.random.default_rng(0)
    table, label = (rng.integers(0, 256, shape).astype(np.uint8) for shape in ((256,), (30, 50)))
    np.testing.assert_array_equal(remap(label, table), table[label])
    np.testing.assert_array_equal(remap(label.T[::2, 1:], table), table[label.T[::2, 1:]])
    assert remap(label[:0], table).shape == (0, 50)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (1, 8), (1, 9), (3, 5), (4, 4), (5, 13), (30, 40), (0, 4)])
def test_distinct_numbers_are_those_of_a_slow_search(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for num_values in (1, 2, 20, 256):
        numbers = rng.integers(0, 256, num_values)
        for run in (1, 3, 8, 50):  # pixels of one class in a row
            mask = rng.choice(numbers, shape[0] * shape[1] // run + 1).repeat(run)[: shape[0] * shape[1]]
            expected = sorted(set(mask.tolist()) - {255})
            assert distinct_numbers(mask.astype(np.uint8).reshape(shape)) == expected
