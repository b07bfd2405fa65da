"""Files that are wrong are refused by name, all problems together, and nothing is left behind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.cases import CASES, OF_A, Case, put, segmentation, sound_coco, write_coco_content
from tests.support.prepare import (
    NO_WORKERS,
    SQUARE,
    fails,
    labelme,
    pixels,
    read,
    shape,
    write_image,
    write_labelme,
)
from tools.prepare_folder import main


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_wrong_file_is_refused_by_name_and_nothing_is_left_behind(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fails(capsys, *case.make(tmp_path), "--output", tmp_path / "out")
    assert [text for text in case.says if text not in told] == [], told
    assert not (tmp_path / "out").exists()


def test_all_problems_are_told_together_and_skip_bad_leaves_out_their_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = sound_coco()
    segmentation([[1, 1, 4]])(content)
    put(9, "annotations", 1, "category_id")(content)
    put(60, "images", 1, "height")(content)
    more = {"id": 14, "image_id": 0, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [1]}}
    content["annotations"].append(more)
    arguments = [*write_coco_content(tmp_path, content), "--output", str(tmp_path / "out")]
    told = fails(capsys, *arguments)
    assert "nothing was written. Problems: 4, in 2 of 4 images; mend them, or leave out" in told
    lines = [
        OF_A,
        "annotation 11 of b.png: category_id: found 9",
        "drawn on an image of 8x60",
        "annotation 14 of a.png",
    ]
    assert [line for line in lines if line not in told] == []
    assert main([*arguments, "--skip-bad", *NO_WORKERS]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 of 4 images are left out (--skip-bad):\n")
    assert [line for line in lines if line not in out] == []
    assert {path.stem for path in (tmp_path / "out").glob("masks/*/*")} == {"c", "d"}


def test_a_problem_of_no_image_is_not_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = sound_coco()
    put(7, "annotations", 0, "image_id")(content)
    arguments = write_coco_content(tmp_path, content)
    told = fails(capsys, *arguments, "--output", tmp_path / "out", "--skip-bad")
    assert "--skip-bad cannot help with the first 1, which belong to no image" in told


def test_a_failed_run_does_not_block_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = sound_coco()
    segmentation([[1]])(content)
    arguments = write_coco_content(tmp_path, content)
    fails(capsys, *arguments, "--output", tmp_path / "out")
    arguments = write_coco_content(tmp_path, sound_coco())
    other = ["--classes", "kiwi", "pear", "--output", str(tmp_path / "out")]
    assert main([*arguments, *other, *NO_WORKERS]) == 0
    # Nor does it touch what an earlier run has made.
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    write_coco_content(tmp_path, content)
    fails(capsys, *arguments, *other)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


def test_outside_is_allowed_when_it_is_asked_for(tmp_path: Path) -> None:
    content = sound_coco()
    write_image(tmp_path / "elsewhere" / "x.png")
    content["images"][0]["file_name"] = "..\\elsewhere\\x.png"
    arguments = write_coco_content(tmp_path, content)
    output = ["--output", str(tmp_path / "out"), "--allow-outside"]
    assert main([*arguments, *output, *NO_WORKERS]) == 0
    assert read(tmp_path / "out", "elsewhere_x").any()


def test_names_are_stripped_and_background_is_background(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stem, label in (("a", "pear "), ("b", "pear"), ("c", "Background")):
        write_labelme(tmp_path / "in" / f"{stem}.json", shape(label, *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_text() == "background\npear\n"
    assert "label 'Background' is background, as 'background' is\n" in capsys.readouterr().out
    assert not read(tmp_path / "out", "c").any()


def test_splits_that_number_their_images_alike_are_both_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, label in (("train", "pear"), ("val", "kiwi")):
        for stem in ("0001", "0002"):
            write_labelme(tmp_path / split / f"{stem}.json", shape(label, *SQUARE))
    labelme(tmp_path / "train", tmp_path / "out", "--val", str(tmp_path / "val"))
    assert "ids are prefixed by their split, as both have 2 images (0001, 0002)" in capsys.readouterr().out
    assert read(tmp_path / "out", "train_0001").max() == 1
    assert read(tmp_path / "out", "val_0002").max() == 2


def test_what_is_passed_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = sound_coco()
    content["categories"].insert(0, {"id": 0, "name": "fruits", "supercategory": "none"})
    del content["annotations"][3]
    segmentation([[1, 1, 1.1, 1, 1.1, 1.1]])(content)
    arguments = write_coco_content(tmp_path, content)
    write_image(tmp_path / "photos" / "deeper" / "e.png")
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [
        f"{tmp_path / 'coco.json'}: 1 images (d.png) without an annotation: background throughout",
        "left out, as no annotation names them: 1 images (e.png)",
        f"{tmp_path / 'coco.json'}: {OF_A}draws no pixel; it is left out",
        "classes without a pixel in any mask: fruits",
    ]
    told = fails(capsys, *arguments, "--output", tmp_path / "none", "--classes", "Pear", "fig")
    assert "--classes: no label is called Pear, fig; found are fruits, pear, kiwi" in told
    told = fails(capsys, *arguments, "--output", tmp_path / "none", "--classes", "pear", "pear")
    assert "--classes: found 'pear' twice" in told


def test_json_in_capitals_and_linked_folders_are_read(tmp_path: Path) -> None:
    for path in ("in/a", "elsewhere/b", "in/c"):
        write_labelme(tmp_path / f"{path}.json", shape("pear", *SQUARE))
    (tmp_path / "in" / "a.json").rename(tmp_path / "in" / "a.JSON")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "around").symlink_to(tmp_path / "in")
    labelme(tmp_path / "in", tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").glob("masks/*/*")} == {"a", "linked_b", "c"}


SQUARE_4 = ((1, 1), (4, 1), (4, 3), (1, 3))


@pytest.mark.parametrize(
    "entry",
    [
        shape("pear", (1, 1), (4, 3), kind="rectangle"),
        shape("pear", (4, 1), (1, 3), kind="rectangle"),
        shape("pear", *SQUARE_4, kind="rectangle"),  # X-AnyLabeling
        shape("pear", (1, 1), (4, 3), (4, 1), (1, 3), kind="rectangle"),
        shape("pear", *SQUARE_4, kind="rotation", direction=0.0),
        {**shape("pear", *SQUARE_4), "shape_type": None},
    ],
)
def test_a_rectangle_is_drawn_as_its_writer_meant_it(tmp_path: Path, entry: dict[str, Any]) -> None:
    for stem in "ab":
        write_labelme(tmp_path / "in" / f"{stem}.json", entry)
    labelme(tmp_path / "in", tmp_path / "out")
    expected = pixels("........", ".1111...", ".1111...", ".1111...", "........", "........")
    np.testing.assert_array_equal(read(tmp_path / "out", "a"), expected)


def test_a_sound_file_stays_sound(tmp_path: Path) -> None:
    arguments = write_coco_content(tmp_path, copy.deepcopy(sound_coco()))
    content = json.loads((tmp_path / "coco.json").read_text())
    (tmp_path / "coco.json").write_text("\ufeff" + json.dumps(content))  # a byte order mark
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    for name, class_id in (("a", 1), ("d", 2)):
        expected = np.zeros((6, 8), np.uint8)
        expected[1:3, 1:4] = class_id
        np.testing.assert_array_equal(read(tmp_path / "out", name), expected)
