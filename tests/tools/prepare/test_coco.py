"""COCO's instances and panoptic segments become the masks that they draw, pixel by pixel."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from datasets import folder
from tests.support.data import Mask
from tests.support.prepare import NO_WORKERS, fails, pixels, read, write_image
from tools.prepare_folder import main


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


NUMBERS = itertools.count(1)


def instance(image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": next(NUMBERS),
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
        ([], 7, "of part/a.png: its segmentation is neither polygons of at least 3 points nor"),
        ([[1, 1, 4, 4]], 7, "boxes alone make no mask"),
        ([[1, 1, 4, 1, 4, 3, 1]], 7, "segmentation[0]: found 7 numbers; allowed is an even number"),
        (
            {"size": [8, 6], "counts": [48]},
            7,
            "found a run-length encoding of 8x6 (height x width); allowed is the image's 6x8",
        ),
        (
            [[1, 1, 4, 1, 4, 3]],
            8,
            "of part/a.png: category_id: found 8; allowed are [7, 13, 90]",
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
    expected = (
        f"instances.json: category 7 ('car'): color: found {colour!r}; allowed are three numbers from 0"
    )
    assert expected in told


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


def test_problems_are_told_where_they_leave_no_image_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photos" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": "6", "width": 8}],
        "categories": [{"id": 1, "name": "pear"}, {"id": 1, "name": "kiwi"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 2, 3, 4, 5, 6, 7]]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    arguments = ["coco", str(tmp_path / "coco.json"), "--images", str(tmp_path / "photos")]
    told = fails(capsys, *arguments, "--output", tmp_path / "out")
    for what in ("found the id 1 twice", "height: found '6'", "found 7 numbers", "no image for val"):
        assert what in told
    assert not (tmp_path / "out").exists()
