"""The sizes of steps in docs/training.md are those that the code selects."""

from __future__ import annotations

import re

import pytest

from datasets import ade20k, voc
from datasets.selection import select_images
from datasets.tasks import build_task
from tests.datasets.test_selection import needs_shared, read_shared
from tests.docs.pages import PAGES

ROWS = re.findall(
    r"^\| (voc|ade20k) \| (\S+) \| (\w+) \| ([\d, ]+) \|$", PAGES["docs/training.md"], re.MULTILINE
)


def test_the_split_sizes_are_those_of_every_task_of_the_literature() -> None:
    tasks = {(data, task) for data, task, _, _ in ROWS}
    voc_tasks = "19-1 15-5 15-1 10-1 5-3 5-1 2-2 2-1 10-10 offline"
    ade_tasks = "100-50 100-10 100-5 50-50 50-20 offline"
    expected = {("voc", task) for task in voc_tasks.split(" ")} | {
        ("ade20k", task) for task in ade_tasks.split(" ")
    }
    assert tasks == expected
    assert len(ROWS) == 3 * len(expected)


@needs_shared
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_a_row_of_split_sizes_is_what_the_code_selects(row: tuple[str, str, str, str]) -> None:
    data, name, setting, sizes = row
    task = build_task(name, {"voc": voc.CLASSES, "ade20k": ade20k.CLASSES}[data])
    images = read_shared({"voc": "voc", "ade20k": "ade"}[data], "train")
    found = [len(select_images(images, task, step, setting)) for step in task.steps]
    assert ", ".join(map(str, found)) == sizes
