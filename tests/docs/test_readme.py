"""The README says what is true: its table is the config's, its files exist."""

import re

import pytest

from datasets import ade20k, voc
from datasets.selection import select_images
from datasets.tasks import build_task
from tests.datasets.test_selection import needs_shared, read_shared
from tests.support.paths import ROOT
from tools.config_table import config_table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_configuration_table_is_that_of_the_config() -> None:
    assert config_table() in README


def test_the_first_two_commands_install_and_run_the_demo_and_the_tests() -> None:
    demo, tests = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)[:2]
    assert demo.count("\n") == tests.count("\n") == 1
    assert "main.py --config configs/demo.yaml" in demo
    assert "pytest" in tests


def test_every_file_that_it_names_exists() -> None:
    named = set(
        re.findall(r"`((?:datasets|losses|models|trainer|utils|tests|tools|configs)/[\w/]+\.\w+)`", README)
    )
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []


def test_every_test_that_it_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(?:(\w+)::)?(test_\w+)`", README)
    assert len(named) > 20
    for file, group, name in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {name}\(", source, re.MULTILINE), f"{file} has no {name}"
        assert not group or f"class {group}:" in source


SPLIT_ROWS = re.findall(r"^\| (voc|ade20k) \| (\S+) \| (\w+) \| ([\d, ]+) \|$", README, re.M)


def test_the_split_sizes_are_those_of_every_task_of_the_literature() -> None:
    tasks = {(data, task) for data, task, _, _ in SPLIT_ROWS}
    voc_tasks = "19-1 15-5 15-1 10-1 5-3 5-1 2-2 2-1 10-10 offline"
    ade_tasks = "100-50 100-10 100-5 50-50 50-20 offline"
    expected = {("voc", task) for task in voc_tasks.split(" ")} | {
        ("ade20k", task) for task in ade_tasks.split(" ")
    }
    assert tasks == expected
    assert len(SPLIT_ROWS) == 3 * len(expected)


@needs_shared
@pytest.mark.parametrize("row", SPLIT_ROWS, ids="-".join)
def test_a_row_of_split_sizes_is_what_the_code_selects(row: tuple[str, str, str, str]) -> None:
    data, name, setting, sizes = row
    task = build_task(name, {"voc": voc.CLASSES, "ade20k": ade20k.CLASSES}[data])
    images = read_shared({"voc": "voc", "ade20k": "ade"}[data], "train")
    found = [len(select_images(images, task, step, setting)) for step in task.steps]
    assert ", ".join(map(str, found)) == sizes
