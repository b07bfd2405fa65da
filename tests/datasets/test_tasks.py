"""Tasks cut the classes of a data set into steps, and say clearly what is wrong with a wrong description."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import ade20k, voc
from datasets.tasks import Step, build_task
from tests.support.paths import SHARED

ANIMALS = ("background", "cat", "dog", "cow", "horse")


def sizes(name: str, classes: Sequence[str] = voc.CLASSES) -> list[tuple[int, int]]:
    return [(step.num_old, step.num_new) for step in build_task(name, classes).steps]


def test_15_1_counts_background_as_the_protocol_does() -> None:
    assert sizes("15-1") == [(0, 16), (16, 1), (17, 1), (18, 1), (19, 1), (20, 1)]


@pytest.mark.parametrize(
    ("name", "num_foreground", "expected"),
    [
        ("19-1", 20, [(0, 20), (20, 1)]),
        ("15-5", 20, [(0, 16), (16, 5)]),
        ("10-10", 20, [(0, 11), (11, 10)]),
        ("5-3", 20, [(0, 6), (6, 3), (9, 3), (12, 3), (15, 3), (18, 3)]),
        ("10-4", 20, [(0, 11), (11, 4), (15, 4), (19, 2)]),
        ("10-40", 20, [(0, 11), (11, 10)]),
        ("20-1", 20, [(0, 21)]),
        ("offline", 20, [(0, 21)]),
        ("100-50", 150, [(0, 101), (101, 50)]),
    ],
)
def test_named_tasks_have_these_old_and_new_counts(
    name: str, num_foreground: int, expected: list[tuple[int, int]]
) -> None:
    assert sizes(name, ["background", *map(str, range(num_foreground))]) == expected


@settings(max_examples=40, deadline=None)
@given(base=st.integers(1, 30), increment=st.integers(1, 12), extra=st.integers(0, 40))
def test_steps_of_any_named_task_tile_all_classes(base: int, increment: int, extra: int) -> None:
    classes = ["background", *map(str, range(base + extra))]
    task = build_task(f"{base}-{increment}", classes)
    assert [c for step in task.steps for c in step.new_classes] == list(range(len(classes)))
    assert all(step.num_new == increment for step in task.steps[1:-1])
    assert [step.index for step in task.steps] == list(range(len(task.steps)))


def test_a_step_knows_old_new_and_seen_classes() -> None:
    first, second = Step(0, 0, 3), Step(1, 3, 2)
    assert (first.old_classes, first.new_classes, first.seen_classes) == ((), (0, 1, 2), (0, 1, 2))
    assert (second.old_classes, second.new_classes) == ((0, 1, 2), (3, 4))
    assert (second.seen_classes, second.num_classes) == ((0, 1, 2, 3, 4), 5)


def test_explicit_lists_keep_their_order_and_may_leave_classes_out() -> None:
    task = build_task([["horse", "cat"], ["dog"]], ANIMALS)
    assert task.name == "2-1"
    assert task.class_names == ("background", "horse", "cat", "dog")
    assert task.class_ids == (0, 4, 1, 2)
    assert [(s.num_old, s.num_new) for s in task.steps] == [(0, 3), (3, 1)]
    assert task.new_class_names(0) == ("background", "horse", "cat")
    assert task.new_class_names(task.steps[1]) == ("dog",)


def test_remap_table_sends_classes_outside_the_task_to_background_and_keeps_255() -> None:
    table = build_task([["horse", "cat"], ["dog"]], ANIMALS).remap_table()
    assert table.dtype == np.uint8
    assert table.shape == (256,)
    assert table[[0, 1, 2, 3, 4]].tolist() == [0, 2, 3, 0, 1]
    assert table[255] == 255
    assert not table[5:255].any()


def test_class_order_permutes_names_ids_and_remap_table() -> None:
    task = build_task("2-1", ANIMALS, class_order=[0, 3, 1, 4, 2])
    assert task.class_names == ("background", "cow", "cat", "horse", "dog")
    assert task.remap_table()[:5].tolist() == [0, 2, 4, 1, 3]
    assert [task.new_class_names(step) for step in task.steps[1:]] == [("horse",), ("dog",)]


@pytest.mark.parametrize("order", sorted(voc.CLASS_ORDERS))
def test_every_published_order_is_accepted_and_inverted_by_the_remap_table(order: str) -> None:
    task = build_task("15-1", voc.CLASSES, voc.CLASS_ORDERS[order])
    assert task.remap_table()[list(task.class_ids)].tolist() == list(range(21))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("15_1", "in quotes"),
        ("15-1s", "not a task name"),
        ("-1", "not a task name"),
        (151, "YAML reads 15_1 as the number 151"),
        (None, "NoneType"),
        ("0-1", "step of 0 classes"),
        ("2-0", "step of 0 classes"),
        ("5-1", "starts with 5 classes, but the data set has 4"),
        ([], "list of steps is empty"),
        ([["cat"], []], "step 1 is empty"),
        (["cat", "dog"], "step 0 is 'cat'; expected one list"),
        ([["cat"], ["background"]], "step 1 lists 'background'"),
        ([["cat"], ["dog", "cat"]], "'cat' is listed twice, in step 0 and in step 1"),
        ([["cat", "hrose"]], "unknown class 'hrose'; did you mean 'horse'"),
        ([["zebra"]], "the data set has cat, dog, cow, horse"),
        ([[3]], "unknown class 3"),
    ],
)
def test_a_wrong_task_is_refused_with_the_reason(description: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(description, ANIMALS)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 0, 2, 3, 4], "starts with"),
        ([], "starts with"),
        ([0, 1, 2, 3], r"missing \[4\]"),
        ([0, 1, 2, 3, 3], r"missing \[4\], repeated \[3\]"),
        ([0, 1, 2, 3, 7], r"unknown \[7\]"),
        (["cat"], "class_order: found"),
    ],
)
def test_a_wrong_class_order_is_refused_with_the_reason(order: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task("2-1", ANIMALS, class_order=order)


def test_class_order_beside_explicit_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="already fix the order"):
        build_task([["cat"]], ANIMALS, class_order=[0, 1, 2, 3, 4])


@pytest.mark.skipif(not SHARED.is_dir(), reason="reference data (shared/splits) is absent")
def test_class_orders_equal_the_published_ones() -> None:
    published = json.loads((SHARED / "splits" / "voc_class_orders.json").read_text())["15-1"]
    assert {name: list(order) for name, order in voc.CLASS_ORDERS.items()} == published


@pytest.mark.skipif(not SHARED.is_dir(), reason="reference data (shared/splits) is absent")
@pytest.mark.parametrize(
    ("file", "classes", "palette"),
    [
        ("voc_classes.tsv", voc.CLASSES, voc.PALETTE),
        ("ade20k_classes.tsv", ade20k.CLASSES, ade20k.PALETTE),
    ],
)
def test_class_names_and_colours_equal_the_published_ones(
    file: str, classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> None:
    rows = [line.split("\t") for line in (SHARED / "splits" / file).read_text().splitlines()[1:]]
    assert [name for _, name, *_ in rows] == list(classes)
    assert [tuple(map(int, colour)) for _, _, *colour in rows] == list(palette)
