"""Cityscapes: 19 classes, void, and no true background; background is learned all the same and never scored."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import cityscapes
from datasets.class_index import index_classes
from datasets.incremental import ValidationDataset, evaluation_table, training_table
from datasets.selection import select_images
from datasets.tasks import build_task
from datasets.transforms import EvaluateTransform
from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.data import stripes, write_cityscapes
from tools.doctor import main as doctor
from utils.errors import DataError
from utils.metrics import iou_per_class

# Number in labelIds, the class's name, and its number in labelTrainIds; as the data set's own list has them.
LABELS = (
    "0 unlabeled 255,1 ego_vehicle 255,2 rectification_border 255,3 out_of_roi 255,4 static 255,5 dynamic 255,"
    "6 ground 255,7 road 0,8 sidewalk 1,9 parking 255,10 rail_track 255,11 building 2,12 wall 3,13 fence 4,"
    "14 guard_rail 255,15 bridge 255,16 tunnel 255,17 pole 5,18 polegroup 255,19 traffic_light 6,20 traffic_sign 7,"
    "21 vegetation 8,22 terrain 9,23 sky 10,24 person 11,25 rider 12,26 car 13,27 truck 14,28 bus 15,29 caravan 255,"
    "30 trailer 255,31 train 16,32 motorcycle 17,33 bicycle 18"
)
ROWS = [
    (int(number), name.replace("_", " "), int(train_id))
    for number, name, train_id in map(str.split, LABELS.split(","))
]
CAR, TRUCK, BUS, BICYCLE, VOID = 26, 27, 28, 33, 4  # numbers in labelIds


def test_all_34_numbers_become_the_19_classes_and_void(tmp_path: Path) -> None:
    numbers = np.array([[number for number, _, _ in ROWS] + [255]], np.uint8)
    expected = [255 if train_id == 255 else train_id + 1 for _, _, train_id in ROWS] + [255]
    dataset = cityscapes.open_split(write_cityscapes(tmp_path, {"ulm_000000_000019": numbers}, {}), "train")
    assert len(ROWS) == 34
    assert dataset.read_label("ulm_000000_000019").tolist() == [expected]
    assert index_classes(dataset, None, 0, progress=False) == {"ulm_000000_000019": frozenset(range(1, 20))}
    for _, name, train_id in ROWS:
        assert train_id == 255 or dataset.classes[train_id + 1] == name
    assert (dataset.name, len(dataset.classes), dataset.classes[0]) == ("cityscapes", 20, "background")
    assert dataset.palette[:2] == ((0, 0, 0), (128, 64, 128))
    assert dataset.label_ids == set(range(1, 20))


def test_masks_of_train_ids_are_taken_where_a_split_has_no_others(tmp_path: Path) -> None:
    ids = {"ulm_0_1": stripes(0, 18, 255)}
    write_cityscapes(tmp_path, ids, {}, kind="labelTrainIds")
    np.testing.assert_array_equal(
        cityscapes.open_split(tmp_path, "train").read("ulm_0_1")[1], stripes(1, 19, 255)
    )
    write_cityscapes(tmp_path, {"ulm_0_1": stripes(VOID, CAR)}, {})
    np.testing.assert_array_equal(
        cityscapes.open_split(tmp_path, "train").read("ulm_0_1")[1], stripes(255, 14)
    )


def test_images_of_all_cities_are_found_and_other_files_passed_over(tmp_path: Path) -> None:
    masks = {name: stripes(CAR) for name in ("zurich_0_2", "aachen_0_9", "aachen_0_1")}
    write_cityscapes(tmp_path, masks, {"ulm_0_1": stripes(BUS)})
    for kind in ("color", "instanceIds"):
        Image.new("L", (9, 9)).save(
            tmp_path / "gtFine" / "train" / "aachen" / f"aachen_0_1_gtFine_{kind}.png"
        )
    (tmp_path / "gtFine" / "train" / "license.txt").touch()
    assert cityscapes.open_split(tmp_path, "train").ids == ("aachen_0_1", "aachen_0_9", "zurich_0_2")
    assert cityscapes.open_split(tmp_path, "val").ids == ("ulm_0_1",)


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"leftImg8bit/train: no such folder.*register at www\.cityscapes"
    ):
        cityscapes.open_split(tmp_path, "train")
    write_cityscapes(tmp_path, {"ulm_0_1": stripes(CAR), "ulm_0_2": stripes(34, CAR)}, {})
    with pytest.raises(
        ValueError, match=r"ulm_0_2_gtFine_labelIds\.png: found ids \[34\]; allowed are 0 to 33, and 255"
    ):
        index_classes(cityscapes.open_split(tmp_path, "train"), None, 0, progress=False)
    (tmp_path / "gtFine" / "train" / "ulm" / "ulm_0_1_gtFine_labelIds.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"ulm_0_1_gtFine_labelIds\.png: this mask is missing \(1 of 2"
    ):
        cityscapes.open_split(tmp_path, "train")
    problems: list[str] = []
    assert cityscapes.open_split(tmp_path, "train", problems).ids == ("ulm_0_2",)
    assert len(problems) == 1


def test_an_image_of_the_same_name_in_two_folders_is_told(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"ulm_0_1": stripes(CAR)}, {})
    for kind in ("leftImg8bit", "gtFine"):
        shutil.copytree(tmp_path / kind / "train" / "ulm", tmp_path / kind / "train" / "ulm_copy")
    with pytest.raises(
        DataError, match=r"ulm_copy/ulm_0_1_.*: .*/ulm has a file of this name, too \(1 in all\)"
    ):
        cityscapes.open_split(tmp_path, "train")
    problems: list[str] = []
    (path,) = (image for image, _ in cityscapes.open_split(tmp_path, "train", problems).samples.values())
    assert path.parent.name == "ulm"
    assert [line.partition(":")[0] for line in problems] == [
        str(folder / "train" / "ulm_copy" / name)
        for folder, name in (
            (tmp_path / "leftImg8bit", "ulm_0_1_leftImg8bit.png"),
            (tmp_path / "gtFine", "ulm_0_1_gtFine_labelIds.png"),
        )
    ]


def test_the_doctor_says_where_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["data.name=cityscapes", f"data.root={tmp_path}", "task='14-1'"]
    assert doctor(["--config", str(write_tiny_config(tmp_path)), *set_fields(*fields)]) == 2
    told = capsys.readouterr().out
    assert "(register at www.cityscapes-dataset.com, and unpack" in told
    assert "or set data.root)" in told


@pytest.mark.parametrize(
    ("setting", "sizes"),
    [
        ("overlap", [4, 2, 1, 0, 0, 2]),
        # No image of a later class: a and c show a car and a truck or a bicycle.
        ("disjoint", [1, 1, 1, 0, 0, 2]),
    ],
)
def test_selection_of_14_1_counted_by_hand(tmp_path: Path, setting: str, sizes: list[int]) -> None:
    shown = {
        "a": (CAR, TRUCK),
        "b": (7, 8, VOID),
        "c": (CAR, BICYCLE),
        "d": (TRUCK, BUS, 7),
        "e": (VOID,),
        "f": (BICYCLE,),
    }
    root = write_cityscapes(
        tmp_path, {f"ulm_{name}": stripes(*numbers) for name, numbers in shown.items()}, {}
    )
    images = index_classes(cityscapes.open_split(root, "train"), None, 0, progress=False)
    task = build_task("14-1", cityscapes.CLASSES)
    assert [step.num_classes for step in task.steps] == [15, 16, 17, 18, 19, 20]
    assert [task.new_class_names(step)[-1] for step in task.steps[:2]] == ["car", "truck"]
    assert [len(select_images(images, task, step, setting)) for step in range(6)] == sizes


@pytest.mark.parametrize(
    ("name", "num_steps"), [("14-1", 6), ("10-1", 10), ("13-6", 2), ("11-5", 3), ("offline", 1)]
)
def test_tasks_by_arithmetic_end_with_all_19_classes(name: str, num_steps: int) -> None:
    task = build_task(name, cityscapes.CLASSES)
    assert len(task.steps) == num_steps
    assert task.steps[-1].num_classes == 20


def test_background_is_what_a_step_does_not_label_and_nothing_in_the_end() -> None:
    task = build_task("14-1", cityscapes.CLASSES)
    base, truck, *_, last = task.steps
    ids = range(1, 20)
    assert training_table(task, base, "step")[ids].tolist() == [*range(1, 15), 0, 0, 0, 0, 0]
    assert training_table(task, truck, "step")[ids].tolist() == [0] * 14 + [15] + [0] * 4
    assert training_table(task, last, "seen")[ids].tolist() == [*ids]  # joint: no pixel is background
    assert evaluation_table(task, truck, "ignore")[ids].tolist() == [
        *range(1, 16),
        *[255] * 4,
    ]


def test_background_can_occur_in_evaluation_only_where_classes_are_left_out_or_future_ones_count(
    tmp_path: Path,
) -> None:
    source = cityscapes.open_split(write_cityscapes(tmp_path, {}, {"ulm_0_1": stripes(CAR)}), "val")

    def shows_background(task: Any, future: str) -> bool:
        step = build_task(task, cityscapes.CLASSES).steps[0]
        table = evaluation_table(build_task(task, cityscapes.CLASSES), step, future)
        return ValidationDataset(source, source.ids, table, EvaluateTransform(8, "whole")).shows_background

    assert not shows_background("14-1", "ignore")
    assert shows_background("14-1", "background")
    assert not shows_background("offline", "background")
    assert shows_background([["car"], ["bus"]], "ignore")


def test_a_pixel_taken_for_background_is_an_error_of_its_class() -> None:
    iou = iou_per_class(np.array([[0, 0, 0], [3, 1, 0], [0, 0, 4]]), background_evaluated=False)
    assert np.isnan(iou[0])
    assert iou[1:].tolist() == [0.25, 1.0]


def test_two_steps_are_trained_and_scored_without_a_background(tmp_path: Path) -> None:
    kinds = [(7, CAR, VOID), (8, BICYCLE), (CAR, BICYCLE, 7), (BICYCLE, 255)] * 2
    train = {f"ulm_{i}": stripes(*numbers, height=24, width=48) for i, numbers in enumerate(kinds)}
    val = {f"bonn_{i}": stripes(7, CAR, VOID, BICYCLE, height=24, width=48) for i in range(3)}
    root = write_cityscapes(tmp_path / "data", train, val)
    fields = [
        "data.name=cityscapes",
        f"data.root={root}",
        "task='18-1'",
        "evaluate.mode=whole",
        "val_fraction=0.2",
    ]
    result = call_main("--config", write_tiny_config(tmp_path), "--log", "run", *set_fields(*fields))
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "run"
    base, last = json.loads((run / "results.json").read_text())["steps"]
    assert (base["num_train_images"], last["num_train_images"]) == (
        5,
        5,
    )  # 6 each show such a class, 1 is held out
    for entry, labelled in ((base, ("road", "car")), (last, ("road", "car", "bicycle"))):
        rows = list(csv.reader((run / "confusion" / f"step_{entry['step']}.csv").read_text().splitlines()))
        counts = {row[0]: np.array(row[1:], float) for row in rows[1:]}
        # Four stripes of 12 columns; void is counted nowhere, the bicycle not before it is learned.
        pixels = dict.fromkeys(labelled, 3 * 24 * 12)
        assert {name: row.sum() for name, row in counts.items() if row.sum()} == pixels
        assert entry["per_class_iou"]["background"] is None
        assert "background" not in entry["groups"]["mbs"]["all"]["classes"]
        assert entry["miou_all"] == entry["without_background"]["miou_all"]
        assert np.isfinite(entry["miou_all"])
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for entry in losses for value in entry.values() if isinstance(value, float))
