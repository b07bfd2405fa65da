"""utils/report/tables.py: percentages of a run for people, in columns that nothing breaks."""

from typing import Any

import numpy as np
import pytest

from tests.support.results import HISTORY, NAMES, make_results
from utils.report.tables import format_markdown, format_table


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results(NAMES, HISTORY)


def test_markdown_shows_the_run_and_percentages(results: dict[str, Any]) -> None:
    text = format_markdown(results)
    assert text.startswith("# 2-1 · overlap · mbs · folder · seed 3\n")
    assert "| 0 | background, cat, step | 70.0 | – | 70.0 | 70.0 | – | – | – |" in text
    assert "| 1 | a, b | 48.3 | 60.0 | 25.0 | 60.0 | 25.0 | 35.3 | 10.0 |" in text
    assert "| 1 | a, b | 37.5 | 50.0 | 25.0 | 50.0 | 25.0 | 33.3 |" in text  # without background
    # mib / plop / mbs
    assert (
        "| 0 | 60.0 / 70.0 / 70.0 | – / – / – | 60.0 / 70.0 / 60.0 | 60.0 / 70.0 / 60.0 | – / – / – |" in text
    )
    assert "| 1 | 37.5 / 48.3 / 48.3 | 50.0 / 60.0 / 50.0 | 25.0 / 25.0 / 25.0 | 50.0 / 60.0 / 50.0 |" in text
    assert "| step | – | – |" in text  # no IoU
    assert "| a, b |  | 25.0 |" in text  # not learned at step 0
    assert "**59.2**" in text


def test_a_pipe_in_a_class_name_does_not_break_the_markdown_table() -> None:
    text = format_markdown(make_results(["background", "x|y"], [np.array([0.5, 0.5])]))
    assert "| x\\|y | 50.0 |" in text


def test_format_table_is_aligned_and_in_percent(results: dict[str, Any]) -> None:
    title, header, rule, first, second, _, average = format_table(results).splitlines()
    assert title == "2-1 · overlap · mbs · folder · seed 3 (percent)"
    assert " ".join(header.split()) == "step new classes all old new base incremental hIoU forgetting"
    assert first.split() == ["0", "background,", "cat,", "step", "70.0", "–", "70.0", "70.0", "–", "–", "–"]
    assert second.split() == ["1", "a,", "b", "48.3", "60.0", "25.0", "60.0", "25.0", "35.3", "10.0"]
    assert average.split() == ["avg", "59.2"]
    end_of_all = header.index("all") + len("all")
    assert first[:end_of_all].endswith(" 70.0")
    assert average.endswith(" 59.2")
    assert len(average) == end_of_all
    assert len(header) == len(first) == len(second) == len(rule)


def test_format_table_shortens_many_new_classes() -> None:
    names = ["background", *(f"class number {index}" for index in range(100))]
    line = format_table(make_results(names, [np.full(101, 0.5)])).splitlines()[3]
    assert "background, … (101)" in line
    assert len(line) < 100
