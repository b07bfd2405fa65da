"""Data sets in files: layouts are found, pixels come out as they lie, and what is wrong is named."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import ade20k, folder, voc
from datasets.class_list import read_classes
from datasets.file_dataset import check_libraries, make_palette, read_image
from datasets.masks import read_mask
from tests.support.data import stripes, write_ade, write_folder, write_mask, write_sample, write_voc
from tests.support.paths import SHARED

VOC_ANIMALS = SHARED / "data" / "voc_animals"

TRAIN = {"2007_b": stripes(0, 8, 255), "2007_a": stripes(0, 12)}
VAL = {"2007_v": stripes(0, 15, 1)}


def test_voc_lists_its_splits_in_the_order_of_the_lists(tmp_path: Path) -> None:
    root = write_voc(tmp_path, TRAIN, VAL)
    train, val = voc.open_split(tmp_path, "train"), voc.open_split(tmp_path, "val")
    assert train.ids == ("2007_b", "2007_a")
    assert val.ids == ("2007_v",)
    assert val.samples["2007_v"] == (
        root / "JPEGImages" / "2007_v.jpg",
        root / "SegmentationClassAug" / "2007_v.png",
    )
    assert (val.name, val.split, len(val.classes), val.background_is_void) == ("voc", "val", 21, False)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_voc_masks_give_their_indices_as_palette_and_as_grey(tmp_path: Path, mode: str) -> None:
    write_voc(tmp_path, TRAIN, VAL, mode=mode)
    dataset = voc.open_split(tmp_path, "train")
    image, label = dataset.read("2007_b")
    assert (image.dtype, image.shape, label.dtype) == (np.uint8, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(label, TRAIN["2007_b"])
    np.testing.assert_array_equal(dataset.read_label("2007_a"), TRAIN["2007_a"])


def test_voc_finds_the_training_list_of_pairs_in_its_other_folder(tmp_path: Path) -> None:
    write_voc(tmp_path, TRAIN, VAL, train_list="list/train_aug.txt", list_pairs=True)
    assert voc.open_split(tmp_path, "train").ids == ("2007_b", "2007_a")


def test_voc_prefers_the_training_list_of_image_sets(tmp_path: Path) -> None:
    root = write_voc(tmp_path, TRAIN, VAL)
    (root / "list").mkdir()
    (root / "list" / "train_aug.txt").write_text("2007_v\n")
    assert voc.open_split(tmp_path, "train").ids == ("2007_b", "2007_a")


def test_voc_without_a_training_list_trains_on_all_masks_but_the_validation_ones(tmp_path: Path) -> None:
    write_voc(tmp_path, TRAIN, VAL, train_list=None)
    assert voc.open_split(tmp_path, "train").ids == ("2007_a", "2007_b")


def test_ade20k_lists_both_splits_and_says_that_its_background_is_void(tmp_path: Path) -> None:
    write_ade(
        tmp_path, {"ADE_train_2": stripes(0, 150), "ADE_train_1": stripes(7)}, {"ADE_val_1": stripes(1)}
    )
    train = ade20k.open_split(tmp_path, "train")
    assert train.ids == ("ADE_train_1", "ADE_train_2")
    assert ade20k.open_split(tmp_path, "val").ids == ("ADE_val_1",)
    assert (train.name, len(train.classes), train.background_is_void) == ("ade20k", 151, True)
    np.testing.assert_array_equal(train.read_label("ADE_train_2"), stripes(0, 150))


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp"])
def test_folder_reads_every_image_format(tmp_path: Path, suffix: str) -> None:
    write_folder(tmp_path, ["cat", "dog"], {"a": stripes(0, 1)}, {"b": stripes(2)}, suffix)
    dataset = folder.open_split(tmp_path, "train")
    assert dataset.classes == ("background", "cat", "dog")
    assert dataset.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    image, label = dataset.read("a")
    assert image[0, 15, 0] > 100 > image[0, 15, 2]  # class 1 is painted red: the order is RGB
    np.testing.assert_array_equal(label, stripes(0, 1))


@pytest.mark.parametrize("text", ["cat\ndog\n", "background\ncat\ndog", "\ufeffcat \r\ndog\r\n"])
def test_classes_txt_may_name_background_first_or_leave_it_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_classes(path) == ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog\n", "line 2 is blank"),
        ("background\n\ndog\n", "line 2 is blank"),
        ("cat\ndog\ncat\n", "line 3 repeats the class 'cat' of line 1"),
        ("background\ncat\ncat\n", "line 3 repeats the class 'cat' of line 2"),
        ("cat\nbackground\n", "line 2 repeats the class 'background' of id 0"),
        ("", "found 0 classes"),
        ("background\n", "found 0 classes"),
        (
            "".join(f"c{i}\n" for i in range(255)),
            "found 255 classes besides background; allowed are 1 to 254",
        ),
    ],
)
def test_a_wrong_classes_txt_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("module", [voc, ade20k, folder])
def test_only_train_and_val_are_splits(tmp_path: Path, module: Any) -> None:
    with pytest.raises(ValueError, match="found 'test'; allowed are train, val"):
        module.open_split(tmp_path, "test")


@pytest.mark.parametrize(
    ("removed", "what"),
    [
        ("JPEGImages", "no such folder"),
        ("SegmentationClassAug", "no such folder"),
        ("ImageSets/Segmentation/val.txt", "no such list"),
        ("JPEGImages/2007_v.jpg", "this image is missing"),
        ("SegmentationClassAug/2007_v.png", "this mask is missing"),
    ],
)
def test_what_voc_lacks_is_named_with_the_remedy(tmp_path: Path, removed: str, what: str) -> None:
    path = write_voc(tmp_path, TRAIN, VAL) / removed
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=what) as caught:
        voc.open_split(tmp_path, "val")
    assert str(path) in str(caught.value)
    assert "bash download_voc.sh" in str(caught.value)


def test_empty_voc_splits_are_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {}, VAL, train_list=None)
    with pytest.raises(FileNotFoundError, match="the split is empty"):
        voc.open_split(tmp_path, "train")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(FileNotFoundError, match=r"val\.txt: the list is empty"):
        voc.open_split(tmp_path, "val")


def test_what_ade20k_lacks_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"images/training: no such folder.*python download_ade20k\.py"
    ):
        ade20k.open_split(tmp_path, "train")
    root = write_ade(tmp_path, {"a": stripes(1), "b": stripes(1)}, {})
    (root / "annotations" / "training" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"training/b\.png: this mask is missing \(1 of 2 samples"):
        ade20k.open_split(tmp_path, "train")


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


def test_image_and_mask_of_different_size_are_refused_with_both_sizes(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat"], {"a": stripes(1, height=16, width=20)}, {})
    write_mask(tmp_path / "masks" / "train" / "a.png", stripes(1, height=16, width=12))
    with pytest.raises(ValueError, match=r"a\.png: the mask is 12x16.*a\.jpg is 20x16"):
        folder.open_split(tmp_path, "train").read("a")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_a_mask_that_is_not_one_channel_of_8_bits_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "mask.png"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(ValueError, match=r"mask\.png: a mask must be an 8-bit PNG with one channel"):
        read_mask(path)


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


def test_the_palette_is_the_colour_map_of_voc() -> None:
    palette = make_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


@pytest.mark.skipif(not VOC_ANIMALS.is_dir(), reason="real VOC files (shared/data) are absent")
def test_real_voc_files_are_found_and_read() -> None:
    train, val = voc.open_split(VOC_ANIMALS, "train"), voc.open_split(VOC_ANIMALS, "val")
    assert (len(train.ids), len(val.ids)) == (1578, 150)
    image, label = val.read(val.ids[0])
    assert max(image.shape) == 320
    listed = dict(
        line.split(maxsplit=1) for line in (SHARED / "splits/voc_val_classes.txt").read_text().splitlines()
    )
    assert set(np.unique(label)) - {0, 255} == set(map(int, listed[val.ids[0]].split()))
