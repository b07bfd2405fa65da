"""datasets/source.py and the table DATASETS: all that is known of a data set stands in its one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from datasets import DATASETS
from datasets.class_index import index_classes
from datasets.config import DataConfig, FilesConfig
from datasets.file_dataset import FileDataset
from datasets.long_side import reduce_image, reduce_label
from datasets.source import SegmentationDataset
from tests.support.data import stripes, write_voc
from tests.support.paths import ROOT, SHARED
from utils.config.section import choice

VOC_ANIMALS = SHARED / "data" / "voc_animals"
LISTS = {split: ROOT / "configs" / "voc_animals" / f"{split}.txt" for split in ("train", "val")}
needs_shared = pytest.mark.skipif(not VOC_ANIMALS.is_dir(), reason="real VOC files (shared/data) are absent")
each_source = pytest.mark.parametrize("name", list(DATASETS))
each_source_of_files = pytest.mark.parametrize(
    "name", [name for name, source in DATASETS.items() if source.lies_in_files]
)


def read_options(**values: Any) -> DataConfig:
    """The section that a config's `data` becomes."""
    table = {name: source.options for name, source in DATASETS.items()}
    options: DataConfig = TypeAdapter(choice(table)).validate_python(values)
    return options


def open_split(split: str, **values: Any) -> SegmentationDataset:
    return DATASETS[values["name"]].open(read_options(**values), split, None)


@each_source
def test_the_classes_of_a_source_begin_with_background_and_are_named_once(name: str) -> None:
    classes = DATASETS[name].classes
    if classes is not None:
        assert classes[0] == "background"
        assert len(set(classes)) == len(classes) > 1


@each_source
def test_a_published_order_is_a_permutation_that_starts_with_background(name: str) -> None:
    source = DATASETS[name]
    for order in source.class_orders.values():
        assert source.classes is not None
        assert order[0] == 0
        assert sorted(order) == list(range(len(source.classes)))


@each_source_of_files
def test_only_train_and_val_are_splits(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 'test'; allowed are train, val"):
        DATASETS[name].open(read_options(name=name, root=tmp_path), "test", None)


@each_source_of_files
def test_a_missing_root_is_told_with_how_to_get_the_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_split("train", name=name, root=tmp_path / "nowhere")
    assert DATASETS[name].how_to_get in str(caught.value)


@each_source
def test_the_section_of_a_source_needs_no_more_than_its_name(name: str) -> None:
    options = read_options(name=name)
    assert type(options) is DATASETS[name].options
    assert (options.name, options.num_workers, options.train_on) == (name, 4, "step")


def test_a_data_set_takes_its_own_options_and_refuses_those_of_others() -> None:
    drawn = open_split("train", name="shapes", num_train=5, num_val=3, image_size=40, seed=7)
    assert len(drawn.ids) == 5
    assert drawn.read(drawn.ids[0])[0].shape == (40, 40, 3)
    assert len(open_split("val", name="shapes", num_val=3).ids) == 3
    for values in ({"name": "voc", "num_train": 5}, {"name": "shapes", "long_side": 320}):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            read_options(**values)


@pytest.mark.parametrize(
    "values", [{"long_side": 0}, {"long_side": 3.5}, {"long_side": True}, {"train_ids": 3}]
)
def test_fields_of_files_refuse_values_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        FilesConfig(name="voc", **values)


def test_all_of_voc_restricted_by_lists_gives_the_samples_of_a_small_copy(tmp_path: Path) -> None:
    train = {name: stripes(0, 1 + i, 255, height=48, width=64) for i, name in enumerate("abcdef")}
    val = {"v": stripes(0, 7, height=64, width=48), "w": stripes(9, height=20, width=30)}
    listed = {"train": ["e", "b"], "val": ["w"]}
    full, small = tmp_path / "full", tmp_path / "small"
    write_voc(full, train, val)
    copy = write_voc(
        small,
        {name: reduce_label(train[name], 32) for name in listed["train"]},
        {name: reduce_label(val[name], 32) for name in listed["val"]},
    )
    for split, ids in listed.items():
        (tmp_path / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
        for image_id in ids:
            image = open_split(split, name="voc", root=full).read(image_id)[0]
            # A PNG, whatever its name: the copy loses nothing.
            path = copy / "JPEGImages" / f"{image_id}.jpg"
            Image.fromarray(reduce_image(image, 32)).save(path, format="PNG")

    lists = {f"{split}_ids": tmp_path / f"{split}.txt" for split in listed}
    for split, ids in listed.items():
        ours = open_split(split, name="voc", root=full, long_side=32, **lists)
        theirs = open_split(split, name="voc", root=small)
        assert ours.ids == theirs.ids == tuple(ids)
        for image_id in ids:
            for one, other in zip(ours.read(image_id), theirs.read(image_id), strict=True):
                np.testing.assert_array_equal(one, other)
        assert isinstance(ours, FileDataset)
        assert isinstance(theirs, FileDataset)
        indices = [index_classes(dataset, None, 0, progress=False) for dataset in (ours, theirs)]
        assert indices[0] == indices[1]


@pytest.mark.parametrize(("split", "count"), [("train", 1578), ("val", 150)])
def test_the_lists_of_voc_animals_hold_their_images_once(split: str, count: int) -> None:
    ids = LISTS[split].read_text().split("\n")
    assert ids.pop() == ""
    assert len(set(ids)) == len(ids) == count


@needs_shared
@pytest.mark.parametrize(("split", "published"), [("train", "voc_train_aug"), ("val", "voc_val")])
def test_the_lists_of_voc_animals_are_of_voc_s_own_splits(split: str, published: str) -> None:
    lines = (SHARED / "splits" / f"{published}_classes.txt").read_text().splitlines()
    assert {*LISTS[split].read_text().split()} <= {line.split()[0] for line in lines}


@needs_shared
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_copy_of_voc_animals_reads_the_same_with_the_lists_and_the_long_side(split: str) -> None:
    lists = {f"{name}_ids": path for name, path in LISTS.items()}
    ours = open_split(split, name="voc", root=VOC_ANIMALS, long_side=320, **lists)
    theirs = open_split(split, name="voc", root=VOC_ANIMALS)
    assert ours.ids == theirs.ids
    for image_id in ours.ids[:5]:
        for one, other in zip(ours.read(image_id), theirs.read(image_id), strict=True):
            np.testing.assert_array_equal(one, other)
