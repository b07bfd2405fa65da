"""Image selection gives every step the images that the protocol gives it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import ade20k, voc
from datasets.selection import SETTINGS, select_images
from datasets.tasks import Task, build_task
from tests.support.paths import SHARED

SPLITS = SHARED / "splits"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="reference data (shared/splits) is absent")

CLASSES = ("background", "cat", "dog", "cow")
TASK = build_task("1-1", CLASSES)
IMAGES = {
    "z": {1},
    "a": {0, 1, 2, 255},
    "m": {2, 3},
    "void": {0, 255},
    "b": {3},
}


def test_overlap_takes_every_image_that_shows_a_class_of_the_step() -> None:
    assert select_images(IMAGES, TASK, 0, "overlap") == ["z", "a"]
    assert select_images(IMAGES, TASK, 1, "overlap") == ["a", "m"]
    assert select_images(IMAGES, TASK, 2, "overlap") == ["m", "b"]


def test_disjoint_leaves_out_images_that_show_a_later_class() -> None:
    assert select_images(IMAGES, TASK, 0, "disjoint") == ["z"]
    assert select_images(IMAGES, TASK, 1, "disjoint") == ["a"]
    assert select_images(IMAGES, TASK, 2, "disjoint") == ["m", "b"]


def test_partitioned_gives_each_image_to_its_rarest_class_in_the_order_of_hashes() -> None:
    # The SHA-1 digests begin with z 39, m 6b, a 86, b e9.
    order = sorted(IMAGES, key=lambda image_id: hashlib.sha1(image_id.encode()).hexdigest())
    assert [image_id for image_id in order if image_id != "void"] == ["z", "m", "a", "b"]
    # z -> cat (only class). m: dog and cow have 0 each -> dog (learned earlier). a: cat 1, dog 1 -> cat. b -> cow.
    assert select_images(IMAGES, TASK, 0, "partitioned") == ["z", "a"]
    assert select_images(IMAGES, TASK, 1, "partitioned") == ["m"]
    assert select_images(IMAGES, TASK, 2, "partitioned") == ["b"]


def test_classes_outside_the_task_are_ignored() -> None:
    task = build_task([["cat"], ["dog"]], CLASSES)
    images = {"a": {1, 3}, "b": {2, 3}, "c": {3}, "d": {1, 77}}
    assert select_images(images, task, 0, "disjoint") == ["a", "d"]
    assert select_images(images, task, 1, "disjoint") == ["b"]
    assert sorted(i for step in (0, 1) for i in select_images(images, task, step, "partitioned")) == [*"abd"]


def test_the_class_order_decides_what_is_later() -> None:
    task = build_task("1-1", CLASSES, class_order=[0, 3, 2, 1])
    assert [select_images(IMAGES, task, step, "overlap") for step in range(3)] == [
        ["m", "b"],
        ["a", "m"],
        ["z", "a"],
    ]
    assert [select_images(IMAGES, task, step, "disjoint") for step in range(3)] == [["b"], ["m"], ["z", "a"]]


def test_a_step_may_be_given_as_such_or_by_its_index() -> None:
    assert select_images(IMAGES, TASK, TASK.steps[1], "overlap") == select_images(IMAGES, TASK, 1, "overlap")


@settings(max_examples=40, deadline=None)
@given(
    images=st.dictionaries(st.text(max_size=4), st.frozensets(st.integers(0, 6)), max_size=30),
    order=st.permutations(range(1, 6)),
    name=st.sampled_from(["1-1", "2-2", "3-1", "offline"]),
)
def test_partitioned_is_a_partition_within_overlap_whatever_the_listing(
    images: dict[str, frozenset[int]], order: list[int], name: str
) -> None:
    task = build_task(name, ["background", *"abcde"], class_order=[0, *order])
    parts = [select_images(images, task, step, "partitioned") for step in range(len(task.steps))]
    served = [image_id for part in parts for image_id in part]
    assert len(served) == len(set(served))
    assert set(served) == {image_id for image_id, ids in images.items() if ids & {1, 2, 3, 4, 5}}
    for step, part in enumerate(parts):
        assert set(part) <= set(select_images(images, task, step, "overlap"))
        backwards = dict(reversed(images.items()))
        assert select_images(backwards, task, step, "partitioned") == part[::-1]


def test_an_unknown_setting_or_step_is_refused() -> None:
    with pytest.raises(ValueError, match="found 'overlapped'; allowed are overlap, disjoint"):
        select_images(IMAGES, TASK, 0, "overlapped")
    for step in (-1, 3):
        with pytest.raises(ValueError, match="steps 0 to 2"):
            select_images(IMAGES, TASK, step, "overlap")


@functools.cache
def read_shared(dataset: str, split: str) -> dict[str, frozenset[int]]:
    file = {"voc train": "voc_train_aug", "voc val": "voc_val"}.get(
        f"{dataset} {split}", f"{dataset}_{split}"
    )
    rows = [line.split() for line in (SPLITS / f"{file}_classes.txt").read_text().splitlines()]
    return {image_id: frozenset(map(int, ids)) for image_id, *ids in rows}


COUNTS: dict[str, list[int]] = (
    json.loads((SPLITS / "split_counts.json").read_text()) if SHARED.is_dir() else {}
)


def shared_task(dataset: str, name: str) -> Task:
    return build_task(name, {"voc": voc.CLASSES, "ade": ade20k.CLASSES}[dataset])


@needs_shared
@pytest.mark.parametrize("row", COUNTS)
def test_published_split_sizes_are_reproduced(row: str) -> None:
    dataset, name, setting, split = row.split()
    task, images = shared_task(dataset, name), read_shared(dataset, split)
    assert [len(select_images(images, task, step, setting)) for step in task.steps] == COUNTS[row]


@needs_shared
@pytest.mark.parametrize(("dataset", "name"), [("voc", "15-1"), ("ade", "100-10")])
def test_partitioned_covers_every_real_image_exactly_once(dataset: str, name: str) -> None:
    task, images = shared_task(dataset, name), read_shared(dataset, "train")
    parts = [select_images(images, task, step, "partitioned") for step in task.steps]
    assert Counter(i for part in parts for i in part) == Counter(i for i, ids in images.items() if ids)


@needs_shared
def test_single_class_steps_of_every_published_order_hold_exactly_that_class() -> None:
    images = read_shared("voc", "val")
    for order in voc.CLASS_ORDERS.values():
        task = build_task("15-1", voc.CLASSES, order)
        expected = [image_id for image_id, ids in images.items() if order[18] in ids]
        assert select_images(images, task, 3, "overlap") == expected


def test_the_settings_are_those_of_the_field() -> None:
    assert SETTINGS == ("overlap", "disjoint", "partitioned")
