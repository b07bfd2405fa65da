"""datasets/voc.py: its lists, masks, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import voc
from tests.support.data import stripes, write_voc
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
