"""Annotations of Labelme become the masks that they draw, pixel by pixel."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import folder
from tests.support.prepare import SQUARE, fails, labelme, pixels, read, shape, write_labelme


def test_labelme_polygons_are_filled_with_their_outline_and_smaller_ones_lie_on_top(tmp_path: Path) -> None:
    kiwi = shape("kiwi", (3, 2), (6, 2), (6, 5), (3, 5))
    # The pear is larger or smaller than the kiwi (16 pixels): the order in the file does not matter.
    write_labelme(tmp_path / "in" / "a.json", kiwi, shape("pear", *SQUARE))
    write_labelme(tmp_path / "in" / "b.json", shape("pear", (0, 1), (5, 1), (5, 3), (0, 3)), kiwi)
    write_labelme(tmp_path / "in" / "deeper" / "c.json", shape("fig", *SQUARE), shape("kiwi", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out")
    assert folder.open_split(tmp_path / "out", "train").classes == ("background", "fig", "kiwi", "pear")
    small = pixels("........", ".3333...", ".333322.", ".333322.", "...2222.", "...2222.")
    np.testing.assert_array_equal(read(tmp_path / "out", "a"), small)
    large = pixels("........", "333333..", "3332222.", "3332222.", "...2222.", "...2222.")
    np.testing.assert_array_equal(read(tmp_path / "out", "b"), large)
    # Of equal size: the later in the file.
    equal = pixels("........", ".2222...", ".2222...", ".2222...", "........", "........")
    np.testing.assert_array_equal(read(tmp_path / "out", "deeper_c"), equal)


def test_labelme_rectangles_circles_masks_and_ignored_regions(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[1, 0, 1], [0, 1, 1]], np.uint8)).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    write_labelme(
        tmp_path / "in" / "a.json",
        shape("pear", (2, 1), (0, 0), kind="rectangle"),
        shape("kiwi", (5, 3), (7, 5), kind="mask", mask=encoded),
        shape("__ignore__", (0, 5), (1, 5), kind="rectangle"),
        shape("_background_", (1, 1), (1, 1), kind="rectangle"),
    )
    write_labelme(tmp_path / "in" / "b.json", shape("pear", (3, 3), (3, 1), kind="circle"))
    labelme(tmp_path / "in", tmp_path / "out", "--classes", "kiwi", "pear")
    expected = pixels("222.....", "2.2.....", "........", ".....1.1", "......11", "##......")
    np.testing.assert_array_equal(read(tmp_path / "out", "a"), expected)
    circle = pixels("........", "..222...", ".22222..", ".22222..", ".22222..", "..222...")
    np.testing.assert_array_equal(read(tmp_path / "out", "b"), circle)


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_labelme(tmp_path / ".in" / f"{name}.json", shape("pear", *SQUARE))
        (tmp_path / ".in" / f"._{name}.json").write_bytes(b"\0\5\26\7Mac OS X")
    write_labelme(tmp_path / ".in" / ".trash" / "c.json", shape("fig", *SQUARE))
    labelme(tmp_path / ".in", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("masks/*/*")} == {"a.png", "b.png"}
    assert (tmp_path / "out" / "classes.txt").read_text() == "background\npear\n"


def test_classes_that_are_not_wanted_are_background_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cup = shape("cup", (2, 2), (2, 2), kind="rectangle")
    for name in "ab":
        write_labelme(tmp_path / "in" / f"{name}.json", cup, shape("table", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--classes", "chair", "table")
    out = capsys.readouterr().out
    assert "out: 1 train and 1 val images, 2 classes (classes.txt): chair, table\n" in out
    said = ["no label is called 'chair'", "labels left out (background): cup"]
    assert out.splitlines()[1:] == [*said, "classes without a pixel in any mask: chair"]
    expected = pixels("........", ".2222...", ".2.22...", ".2222...", "........", "........")
    np.testing.assert_array_equal(read(tmp_path / "out", "a"), expected)


def test_shapes_of_unwanted_labels_need_no_area(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = shape("note", (1, 1), kind="point")
    for name in "ab":
        write_labelme(tmp_path / "in" / f"{name}.json", note, shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--classes", "pear")
    expected = pixels("........", ".1111...", ".1111...", ".1111...", "........", "........")
    np.testing.assert_array_equal(read(tmp_path / "out", "a"), expected)
    told = fails(capsys, "labelme", tmp_path / "in", "--output", tmp_path / "all")
    assert "found a point of 1 points; allowed are polygons" in told
    assert "or choose the labels with --classes" in told


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"shapes": [shape("pear", (1, 1), (2, 2), kind="line")]},
            "shape 0 ('pear'): found a line of 2 points; allowed",
        ),
        ({"shapes": [shape("pear", (1, 1), (2, 2))]}, "found a polygon of 2 points"),
        ({"shapes": [shape("pear", (1, 1), (2, 2), kind="mask")]}, "shape 0 ('pear'): not a mask"),
        ({"imageWidth": 9}, "drawn on an image of 9x6 (width x height), but "),
        ({"imagePath": "gone.png"}, "gone.png: no such file or folder"),
    ],
)
def test_what_is_wrong_in_one_file_is_named_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any], message: str
) -> None:
    for name in "abc":
        write_labelme(tmp_path / "in" / f"{name}.json", shape("pear", *SQUARE))
    write_labelme(tmp_path / "in" / "d.json", shape("pear", *SQUARE), **wrong)
    told = fails(capsys, "labelme", tmp_path / "in", "--output", tmp_path / "out")
    assert "in 1 of 4 images; mend them, or leave out the images with --skip-bad:" in told
    assert message in told
    assert not (tmp_path / "out").exists()
    labelme(tmp_path / "in", tmp_path / "out", "--skip-bad")
    out = capsys.readouterr().out
    assert "1 of 4 images are left out (--skip-bad):" in out
    assert message in out
    assert sorted(path.stem for path in (tmp_path / "out").glob("masks/*/*.png")) == [*"abc"]
    # Mended, the same command makes up for it.
    write_labelme(tmp_path / "in" / "d.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out", "d").sum() == 12
    # An image that has been prepared and has turned bad does not stay.
    write_labelme(tmp_path / "in" / "d.json", shape("pear", *SQUARE), **wrong)
    labelme(tmp_path / "in", tmp_path / "out", "--skip-bad")
    assert sorted(path.stem for path in (tmp_path / "out").glob("*/*/*")) == [*"aabbcc"]


def test_sources_that_are_none_are_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    assert "in: no JSON file; give the folder" in fails(capsys, "labelme", source, "--output", output)
    (source / "a.json").write_text("{}")
    assert "a.json: not an annotation of Labelme" in fails(capsys, "labelme", source, "--output", output)
    (source / "a.json").write_text("[]")
    assert "a.json: not an annotation of Labelme" in fails(capsys, "labelme", source, "--output", output)
    (source / "a.json").write_text('{"imagePath": "a.png", "shapes": [{"label": 3, "points": []}]}')
    assert "a.json: shape 0: label: found 3; allowed is a valid string" in fails(
        capsys, "labelme", source, "--output", output
    )
    assert "lies in" in fails(capsys, "labelme", source, "--output", source / "out")
    (source / "a.json").write_text("{")
    assert "a.json: not valid JSON" in fails(capsys, "labelme", source, "--output", output)
    write_labelme(source / "a.json", shape("pear", *SQUARE))
    assert "no image for val; annotate more" in fails(capsys, "labelme", source, "--output", output)
    write_labelme(source / "b.json", shape("pear", *SQUARE), image="b.heic")
    assert "b.heic: allowed are .jpg, .jpeg" in fails(capsys, "labelme", source, "--output", output)
    write_labelme(source / "b.json")
    write_labelme(source / "a" / "b.json")
    write_labelme(source / "a_b.json")
    assert "shares the id 'a_b' with" in fails(capsys, "labelme", source, "--output", output)
    assert not output.exists()
