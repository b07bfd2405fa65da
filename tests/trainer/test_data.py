"""trainer/data.py: what a run takes from the table of data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from datasets import voc
from models import SegmentationModel
from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.data import stripes, write_voc
from trainer.config import load_config
from trainer.data import index_splits, open_split, resolve_class_order
from trainer.learn import train_transform


def test_a_published_order_is_taken_by_its_name(tmp_path: Path) -> None:
    fields = ["data.name=voc", "task=15-1", "class_order=15-1_b"]
    config = load_config(write_tiny_config(tmp_path), fields)
    assert resolve_class_order(config) == list(voc.CLASS_ORDERS["15-1_b"])


def test_an_order_of_another_data_set_is_refused_with_the_names_that_are_known(tmp_path: Path) -> None:
    config = load_config(write_tiny_config(tmp_path), ["task=4-1", "class_order=15-1_b"])
    with pytest.raises(ValueError, match=r".") as caught:
        resolve_class_order(config)
    assert str(caught.value) == (
        "class_order: no published order '15-1_b' for data.name shapes; known for voc: 15-1_b … 15-1_w; "
        "otherwise list the ids"
    )


@pytest.mark.parametrize(
    ("fields", "colour", "label"),
    [
        ([], (1.0, 2.0, 3.0), 255),
        (["train.pad_image=black", "train.pad_label=background"], (0.0, 0.0, 0.0), 0),
    ],
)
def test_the_config_says_what_lies_around_an_image_smaller_than_its_crop(
    tmp_path: Path, fields: list[str], colour: tuple[float, ...], label: int
) -> None:
    model = nn.Module()
    model.register_buffer("pixel_mean", torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
    train = load_config(write_tiny_config(tmp_path), fields).train
    transform = train_transform(train, cast(SegmentationModel, model))
    assert (transform.fill, transform.pad_label) == (colour, label)


def write_lists(folder: Path) -> list[str]:
    """VOC with images of 64 pixels, and the fields that take two of its training images and one to validate on."""
    train = {name: stripes(0, 8, 12, height=48, width=64) for name in "abc"}
    train["b"][0, 0] = 1  # vanishes at a quarter of the size
    write_voc(folder, train, {"v": stripes(8, height=64, width=48), "w": stripes(12)})
    for name, ids in (("train", "c\nb\n"), ("val", "w\n")):
        (folder / f"{name}.txt").write_text(ids)
    return [
        "data.name=voc",
        f"data.root={folder}",
        f"data.train_ids={folder / 'train.txt'}",
        f"data.val_ids={folder / 'val.txt'}",
        "data.long_side=16",
        "task=[[cat], [dog]]",
    ]


def test_lists_and_long_side_of_the_config_say_what_is_opened_and_indexed(tmp_path: Path) -> None:
    config = load_config(write_tiny_config(tmp_path), write_lists(tmp_path))
    train, val = open_split(config, "train"), open_split(config, "val")
    assert (train.ids, val.ids) == (("c", "b"), ("w",))
    assert train.read("b")[0].shape == (12, 16, 3)
    index, left_out = index_splits(config, train, val)
    assert (dict(index), left_out) == ({"c": {0, 8, 12}, "b": {0, 8, 12}}, ())


def test_a_run_trains_and_validates_on_the_listed_images(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    outcome = call_main("--config", config, "--log", "listed", *set_fields(*write_lists(tmp_path)))
    assert outcome.returncode == 0, outcome.stderr
    run = tmp_path / "runs" / "listed"
    assert (run / "train_images" / "step_0.txt").read_text() == "c\nb\n"
    steps = json.loads((run / "results.json").read_text())["steps"]
    assert [step["num_val_images"] for step in steps] == [1, 1]


def test_a_list_with_an_id_of_another_split_ends_the_run_before_it_starts(tmp_path: Path) -> None:
    fields = write_lists(tmp_path)
    (tmp_path / "train.txt").write_text("c\nw\n")
    outcome = call_main("--config", write_tiny_config(tmp_path), "--log", "wrong", *set_fields(*fields))
    assert outcome.returncode == 2
    assert outcome.stderr == (
        f"error: data.train_ids: {tmp_path / 'train.txt'}: the id 'w' is not in the train split of voc; "
        "allowed are its 3 ids (such as 'a')\n"
    )
    assert not (tmp_path / "runs" / "wrong").exists()
