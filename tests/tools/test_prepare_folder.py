"""tools/prepare_folder.py: annotations of others become the masks that they draw, pixel by pixel."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from datasets import folder
from tests.support.cli import set_fields, write_tiny_config
from tests.support.data import Mask, stripes, write_cityscapes
from tools import check_data
from tools.prepare.samples import make_id
from tools.prepare_folder import main

NO_WORKERS = ["--num-workers", "0"]


def write_image(path: Path, width: int = 8, height: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.stem) + ord(path.stem[-1])).integers(0, 256, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def pixels(*rows: str) -> Mask:
    """A mask as it looks: digits, '.' for background, '#' for 255."""
    table = {".": 0, "#": 255}
    return np.array([[table.get(c) if c in table else int(c) for c in row] for row in rows], np.uint8)


def read(root: Path, image_id: str) -> Mask:
    """The label of an image as data.name=folder reads it, from whichever split holds it."""
    for split in ("train", "val"):
        if (root / "masks" / split / f"{image_id}.png").exists():
            return folder.open_split(root, split).read(image_id)[1]
    raise AssertionError(image_id)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the tool says as it ends with 2."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), *NO_WORKERS])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("fraction", ["0", "1", "nan", "a tenth"])
def test_a_fraction_that_is_none_is_refused_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], fraction: str
) -> None:
    assert fails(capsys, "labelme", "in", "--output", "out", "--val-fraction", fraction).endswith(
        f"error: argument --val-fraction: '{fraction}': give a number between 0 and 1, such as 0.1\n"
    )


# Labelme


def shape(label: str, *points: tuple[float, float], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": [*map(list, points)], "shape_type": kind, "group_id": None, **more}


def write_labelme(path: Path, *shapes: dict[str, Any], image: str | None = None, **more: Any) -> None:
    if image is None:
        image = f"{path.stem}.png"
        write_image(path.parent / image)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"imageHeight": 6, "imageWidth": 8}
    path.write_text(
        json.dumps(
            {"version": "5.5.0", "imagePath": image, "imageData": None, "shapes": shapes, **size, **more}
        )
    )


SQUARE = ((1, 1), (4, 1), (4, 3), (1, 3))


def labelme(source: Path, output: Path, *more: str) -> None:
    assert main(["labelme", str(source), "--output", str(output), *NO_WORKERS, *more]) == 0


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
    assert out.endswith("labels left out (background): cup\n")
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
        ({"imagePath": "gone.png"}, "gone.png: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_wrong_in_one_file_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any], message: str
) -> None:
    for name in "abc":
        write_labelme(tmp_path / "in" / f"{name}.json", shape("pear", *SQUARE))
    write_labelme(tmp_path / "in" / "d.json", shape("pear", *SQUARE), **wrong)
    told = fails(capsys, "labelme", tmp_path / "in", "--output", tmp_path / "out")
    assert "error: 1 images could not be prepared:" in told
    assert message in told
    assert sorted(path.stem for path in (tmp_path / "out").glob("masks/*/*.png")) == [*"abc"]
    # Mended, the same command makes up for it.
    write_labelme(tmp_path / "in" / "d.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out", "d").sum() == 12


def test_sources_that_are_none_are_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    assert "in: no JSON file; give the folder" in fails(capsys, "labelme", source, "--output", output)
    (source / "a.json").write_text("{}")
    assert "a.json: not an annotation of Labelme" in fails(capsys, "labelme", source, "--output", output)
    for content in ("[]", '{"imagePath": "a.png", "shapes": [{"label": 3, "points": []}]}'):
        (source / "a.json").write_text(content)
        assert "a.json: not an annotation of Labelme" in fails(capsys, "labelme", source, "--output", output)
    assert "lies in" in fails(capsys, "labelme", source, "--output", source / "out")
    (source / "a.json").write_text("{")
    assert "a.json: not valid JSON" in fails(capsys, "labelme", source, "--output", output)
    write_labelme(source / "a.json", shape("pear", *SQUARE))
    assert "no image for train; annotate more" in fails(capsys, "labelme", source, "--output", output)
    write_labelme(source / "b.json", shape("pear", *SQUARE), image="b.tif")
    assert "b.tif: allowed are .jpg, .jpeg" in fails(capsys, "labelme", source, "--output", output)
    write_labelme(source / "b.json")
    write_labelme(source / "a" / "b.json")
    write_labelme(source / "a_b.json")
    assert "shares the id 'a_b' with" in fails(capsys, "labelme", source, "--output", output)
    assert not output.exists()


# The split, and what is there already


@pytest.mark.parametrize(("train", "val"), [("in", "in/val"), ("in/train", "in")])
def test_what_lies_below_the_folder_of_the_other_split_or_the_output_is_in_one_split_only(
    tmp_path: Path, train: str, val: str
) -> None:
    for path in (f"{train}/a", f"{train}/deeper/b", f"{val}/v"):
        write_labelme(tmp_path / f"{path}.json", shape("pear", *SQUARE))
    output = tmp_path / "in" / "out" if val == "in" else tmp_path / "out"
    for _ in range(2):  # the second time, prepared.json lies in the output
        labelme(tmp_path / train, output, "--val", str(tmp_path / val))
        assert folder.open_split(output, "train").ids == ("a", "deeper_b")
        assert folder.open_split(output, "val").ids == ("v",)


def test_the_split_is_by_id_and_later_images_leave_the_others_where_they_are(tmp_path: Path) -> None:
    def splits() -> dict[str, str]:
        return {path.stem: path.parent.name for path in (tmp_path / "out").glob("masks/*/*.png")}

    for i in range(20):
        write_labelme(tmp_path / "in" / f"i{i}.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--val-fraction", "0.3", "--link")
    first = splits()
    assert 2 <= list(first.values()).count("val") <= 10
    image = tmp_path / "out" / "images" / first["i3"] / "i3.png"
    assert image.is_symlink()
    assert image.resolve() == tmp_path / "in" / "i3.png"
    for i in range(20, 30):
        write_labelme(tmp_path / "in" / f"i{i}.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--val-fraction", "0.3", "--link")
    assert len(splits()) == 30
    assert splits() | first == splits()


def test_the_one_image_that_was_held_out_stays_so_and_the_share_is_held_out_of_later_ones(
    tmp_path: Path,
) -> None:
    def position(name: str) -> float:
        return int.from_bytes(hashlib.sha1(f"val/{name}".encode()).digest()[:6], "big") / 256**6

    by_hash = sorted((f"i{i}" for i in range(100)), key=position)
    assert position(by_hash[1]) < 0.05 < position(by_hash[20])
    for name in (by_hash[22], by_hash[21]):
        write_labelme(tmp_path / "in" / f"{name}.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--val-fraction", "0.05")
    assert folder.open_split(tmp_path / "out", "val").ids == (by_hash[21],)
    for name in (by_hash[1], by_hash[20]):
        write_labelme(tmp_path / "in" / f"{name}.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--val-fraction", "0.05")
    assert {*folder.open_split(tmp_path / "out", "val").ids} == {by_hash[21], by_hash[1]}
    assert {*folder.open_split(tmp_path / "out", "train").ids} == {by_hash[22], by_hash[20]}


def test_a_rerun_does_what_is_missing_or_has_changed_and_nothing_else(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "abcd":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE))
    labelme(source, output)
    masks = {path.stem: path for path in output.glob("masks/*/*.png")}
    before = {name: path.stat().st_mtime_ns for name, path in masks.items()}
    masks["b"].unlink()
    write_labelme(source / "c.json", shape("pear", *SQUARE[:3]), image="c.png")
    os.utime(source / "c.json", ns=(before["c"] + 1, before["c"] + 1))
    labelme(source, output)
    after = {name: path.stat().st_mtime_ns for name, path in masks.items()}
    assert {name for name in masks if after[name] != before[name]} == {"b", "c"}
    assert read(output, "c").sum() < read(output, "b").sum() == 12


@pytest.mark.parametrize("more", [[], ["--link"]])
def test_a_source_that_changed_is_noticed_although_it_has_an_older_time(
    tmp_path: Path, more: list[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE))
    labelme(source, output, *more)
    write_labelme(source / "a.json", shape("pear", *SQUARE[:3]), image="a.png")
    write_image(source / "b.png", 9)
    write_labelme(source / "b.json", shape("pear", *SQUARE), image="b.png", imageWidth=9)
    for name in ("a.json", "b.json", "b.png"):
        os.utime(source / name, (1, 1))
    labelme(source, output, *more)
    assert [int(read(output, name).sum()) for name in "abc"] == [7, 12, 12]
    assert read(output, "b").shape == (6, 9)
    # The image alone, while its annotation is newer.
    Image.new("RGB", (8, 6), (1, 2, 3)).save(source / "c.png")
    os.utime(source / "c.png", (1, 1))
    labelme(source, output, *more)
    (image,) = output.glob("images/*/c.png")
    assert Image.open(image).getpixel((0, 0)) == (1, 2, 3)


def test_what_is_there_already_is_not_touched_unless_the_command_made_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE))
    (output / "images").mkdir(parents=True)
    told = fails(capsys, "labelme", source, "--output", output)
    assert f"{output}: is there already, and not from this command; choose another --output" in told
    (output / "images").rmdir()
    labelme(source, output)
    told = fails(capsys, "labelme", source, "--output", output, "--classes", "kiwi", "pear")
    assert "was prepared otherwise (classes: ['pear'] → ['kiwi', 'pear'], there → here)" in told
    stranger = output / "masks" / "train" / "z.png"
    stranger.touch()
    assert f"{stranger}: is none of these images (1 such files)" in fails(
        capsys, "labelme", source, "--output", output
    )


def test_a_label_that_is_new_is_refused_with_the_classes_that_let_the_command_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE), shape("red kiwi", *SQUARE[:3]))
    labelme(source, output)
    write_labelme(source / "c.json", shape("fig", *SQUARE), shape("red kiwi", *SQUARE[:3]))
    told = fails(capsys, "labelme", source, "--output", output)
    assert "(classes: ['pear', 'red kiwi'] → ['fig', 'pear', 'red kiwi'], there → here); keep to its" in told
    offered = re.search("`(.+)`, choose another --output, or delete it", told)
    assert offered is not None
    assert offered[1] == "--classes pear 'red kiwi'"
    labelme(source, output, *shlex.split(offered[1]))
    assert np.unique(read(output, "c")).tolist() == [0, 2]
    told = fails(capsys, "labelme", source, "--output", output, "--val-fraction", "0.3")
    assert "there → here); choose another --output" in told


def test_classes_that_no_image_shows_are_in_the_list_to_which_a_class_is_added(tmp_path: Path) -> None:
    for name in "ab":
        write_labelme(tmp_path / "in" / f"{name}.json", shape("fig", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--classes", "pear", "kiwi", "fig")
    assert folder.open_split(tmp_path / "out", "train").classes == ("background", "pear", "kiwi", "fig")
    assert np.unique(read(tmp_path / "out", "a")).tolist() == [0, 3]


# COCO


def rle(mask: Mask, compressed: bool) -> dict[str, Any]:
    """Run lengths down the columns, from zeros on; as a list, or in COCO's compressed string."""
    if compressed:
        found = coco_mask.encode(np.asfortranarray(mask))
        return {"size": list(mask.shape), "counts": found["counts"].decode()}
    column = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(column, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, column.size]).tolist()}


CATEGORIES = [{"id": 90, "name": "tree"}, {"id": 7, "name": "car"}, {"id": 13, "name": "sign"}]
"""Neither contiguous nor sorted."""


def write_coco(
    path: Path,
    annotations: list[dict[str, Any]],
    names: str = "abcd",
    categories: Sequence[dict[str, Any]] = CATEGORIES,
) -> list[str]:
    """A JSON of images of 8 x 6 with ids from 10 on; returns the arguments that name it and them."""
    images = [
        {"id": 10 + i, "file_name": f"part/{name}.png", "height": 6, "width": 8}
        for i, name in enumerate(names)
    ]
    for image in images:
        write_image(path.parent / "photos" / str(image["file_name"]))
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return ["coco", str(path), "--images", str(path.parent / "photos")]


def instance(image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": 1,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


ROUGH = pixels("11111111", "11111111", "11111111", "........", "........", "........")
DOTS = pixels("........", ".1......", "..1.....", "........", "1.......", ".......1")


def test_coco_instances_pixel_by_pixel(tmp_path: Path) -> None:
    square, two = [1, 1, 4, 1, 4, 3, 1, 3], [[0, 0, 2, 0, 2, 2, 0, 2], [4, 4, 8, 4, 8, 6, 4, 6]]
    annotations = [
        instance(10, 7, [square]),
        instance(
            10, 90, [[0, 0, 8, 0, 8, 6, 0, 6]]
        ),  # the whole image, below the car although it comes later
        instance(11, 13, two),
        instance(11, 7, rle(DOTS, compressed=False)),
        instance(12, 90, rle(DOTS, compressed=True)),
        instance(12, 7, rle(ROUGH, compressed=False), crowd=1),
    ]
    arguments = write_coco(tmp_path / "instances.json", annotations)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    assert folder.open_split(tmp_path / "out", "train").classes == ("background", "car", "sign", "tree")
    expected = {
        "a": pixels("33333333", "31113333", "31113333", "33333333", "33333333", "33333333"),
        "b": pixels("22......", "21......", "..1.....", "........", "1...2222", "....2221"),
        # Trees over the crowd of cars, which is ignored.
        "c": pixels("########", "#3######", "##3#####", "........", "3.......", ".......3"),
        "d": np.zeros((6, 8), np.uint8),
    }
    for name, mask in expected.items():
        np.testing.assert_array_equal(read(tmp_path / "out", f"part_{name}"), mask)


def test_coco_with_its_own_validation_split(tmp_path: Path) -> None:
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    arguments = write_coco(tmp_path / "train.json", [instance(10, 7, square)])
    write_coco(tmp_path / "val.json", [instance(10, 13, square)], names="xy")
    assert (
        main(
            [*arguments, "--val", str(tmp_path / "val.json"), "--output", str(tmp_path / "out"), *NO_WORKERS]
        )
        == 0
    )
    assert folder.open_split(tmp_path / "out", "train").ids == ("part_a", "part_b", "part_c", "part_d")
    assert folder.open_split(tmp_path / "out", "val").ids == ("part_x", "part_y")
    assert read(tmp_path / "out", "part_x").max() == 2


@pytest.mark.parametrize(
    ("segmentation", "category", "message"),
    [
        ([], 7, "annotation 1 of part/a.png: its segmentation is neither polygons of at least 3 points nor"),
        ([[1, 1, 4, 4]], 7, "boxes alone make no mask"),
        ({"size": [8, 6], "counts": [48]}, 7, "a run-length encoding of 6x8 (height x width)"),
        (
            [[1, 1, 4, 1, 4, 3]],
            8,
            "instances.json: not COCO's instances or panoptic annotations (KeyError: 8)",
        ),
    ],
)
def test_what_is_wrong_with_an_instance_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], segmentation: Any, category: int, message: str
) -> None:
    arguments = write_coco(tmp_path / "instances.json", [instance(10, category, segmentation)])
    assert message in fails(capsys, *arguments, "--output", tmp_path / "out")


def test_boxes_of_unwanted_categories_need_no_outline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    annotations = [instance(10, 7, square), instance(10, 90, []), instance(10, 90, None, crowd=1)]
    arguments = write_coco(tmp_path / "instances.json", annotations)
    few = [*arguments, "--output", str(tmp_path / "few"), "--classes", "sign", "car"]
    assert main([*few, *NO_WORKERS]) == 0
    expected = pixels("........", ".222....", ".222....", "........", "........", "........")
    np.testing.assert_array_equal(read(tmp_path / "few", "part_a"), expected)
    told = fails(capsys, *arguments, "--output", tmp_path / "all")
    assert "boxes alone make no mask: mend or remove the annotation, or choose the categories with" in told


def test_categories_have_their_colours_as_numbers_or_as_on_the_web(tmp_path: Path) -> None:
    colours = ["#e1FC2c", [128, 64, 0], "#000001"]
    categories = [{**category, "color": colour} for category, colour in zip(CATEGORIES, colours, strict=True)]
    arguments = write_coco(tmp_path / "instances.json", [], categories=categories)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    palette = folder.open_split(tmp_path / "out", "train").palette
    assert palette == ((0, 0, 0), (128, 64, 0), (0, 0, 1), (225, 252, 44))


@pytest.mark.parametrize(
    "colour",
    ["red", "#e1fc2", "#e1fc2c00", [1, 2], [1, 2, 256], [-1, 2, 3], [1, 2, 3.5], [True, 2, 3], 7, {}],
)
def test_a_colour_of_a_category_that_is_none_is_refused_by_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], colour: Any
) -> None:
    categories = [CATEGORIES[0], {**CATEGORIES[1], "color": colour}, CATEGORIES[2]]
    arguments = write_coco(tmp_path / "instances.json", [], categories=categories)
    told = fails(capsys, *arguments, "--output", tmp_path / "out")
    assert (
        f"instances.json: categories: color of 'car': found {colour!r}; allowed are three numbers from 0"
        in told
    )


def test_without_pycocotools_the_error_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = write_coco(tmp_path / "instances.json", [instance(10, 7, [])])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert "need pycocotools (" in (told := fails(capsys, *arguments, "--output", tmp_path / "out"))
    assert "`pip install pycocotools`" in told


def write_panoptic(path: Path, ids: npt.NDArray[np.int64]) -> None:
    """A PNG whose pixels are R + 256·G + 256²·B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)).save(path)


def test_panoptic_ids_are_read_from_all_three_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment_ids = np.array([0, 5, 5 * 256, 5 * 65536, 70000, 70001, 5, 0])
    for name in "abcd":
        write_panoptic(tmp_path / "panoptic" / f"{name}.png", np.tile(segment_ids, (6, 1)))
    segments = [
        {"id": 5, "category_id": 7, "iscrowd": 0},
        {"id": 5 * 256, "category_id": 90, "iscrowd": 0},
        {"id": 5 * 65536, "category_id": 13, "iscrowd": 0},
        {"id": 70000, "category_id": 7, "iscrowd": 1},
        {"id": 70001, "category_id": 90, "iscrowd": 0},
        {"id": 99, "category_id": 90, "iscrowd": 0},
    ]
    annotations = [
        {"image_id": 10 + i, "file_name": f"{name}.png", "segments_info": segments}
        for i, name in enumerate("abcd")
    ]
    categories = [{**category, "color": [category["id"], 0, 1]} for category in CATEGORIES]
    arguments = write_coco(tmp_path / "panoptic.json", annotations, categories=categories)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    np.testing.assert_array_equal(read(tmp_path / "out", "part_a"), np.tile(pixels("#132#31#"), (6, 1)))
    train = folder.open_split(tmp_path / "out", "train")
    assert train.classes == ("background", "car", "sign", "tree")
    assert train.palette == ((0, 0, 0), (7, 0, 1), (13, 0, 1), (90, 0, 1))
    assert [path.name for path in (tmp_path / "out").glob("classes.*")] == ["classes.yaml"]

    assert main([*arguments, "--output", str(tmp_path / "few"), "--classes", "tree", *NO_WORKERS]) == 0
    np.testing.assert_array_equal(read(tmp_path / "few", "part_a"), np.tile(pixels("#.1.#1.#"), (6, 1)))
    del segments[0]
    arguments = write_coco(tmp_path / "panoptic.json", annotations, categories=categories)
    told = fails(capsys, *arguments, "--output", tmp_path / "third")
    assert "a.png: holds segments that segments_info does not list: [5]; mend one of them" in told


def test_an_image_id_is_one_name_wherever_the_image_lies() -> None:
    paths = ["a.png", "part/a.b.png", "/photos/a.png", "../photos/a.png"]
    assert [make_id(Path(path)) for path in paths] == ["a", "part_a.b", "photos_a", "photos_a"]


# Cityscapes, and what training makes of it all


def test_cityscapes_becomes_a_folder_that_check_data_finds_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {f"ulm_0_{i}": stripes(7, 26, 4, width=18 + i) for i in range(4)}
    val = {f"bonn_0_{i}": stripes(26, 7, 255, width=18 + i) for i in range(4)}
    write_cityscapes(tmp_path / "in", train, val)
    assert main(["cityscapes", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert set(np.unique(read(tmp_path / "out", "ulm_0_1"))) == {1, 14, 255}
    np.testing.assert_array_equal(read(tmp_path / "out", "bonn_0_0"), stripes(14, 1, 255, width=18))
    assert folder.open_split(tmp_path / "out", "val").palette[1] == (128, 64, 128)
    fields = ["data.name=folder", f"data.root={tmp_path / 'out'}", "task=[[road], [car]]"]
    assert check_data.main(["--config", str(write_tiny_config(tmp_path)), *set_fields(*fields)]) == 0
    assert "4 train, 4 val images, no problems" in capsys.readouterr().out
