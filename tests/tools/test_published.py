"""docs/published.tsv: 471 rows that load, and whose counting of background fits what they print."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets import DATASETS
from datasets.tasks import build_task
from tools.published.registry import FIGURES, read_recipes, read_rows, recipe_of

ROWS = read_rows()


def test_every_row_is_there_and_is_of_a_task_that_this_code_knows() -> None:
    assert len(ROWS) == 471
    for row in ROWS:
        classes = DATASETS[row.dataset].classes
        assert classes is not None
        if row.setting != "domain":
            build_task(row.task, classes)
    assert {row.setting for row in ROWS} == {"overlap", "disjoint", "offline", "domain", "unknown"}


def test_where_background_counts_fits_the_arithmetic_of_the_printed_groups() -> None:
    """Where a row's notes say that its groups give `all` one way, the columns say the same way."""
    for row in ROWS:
        if "arith: all = mean with background in old group" in row.notes:
            assert row.background["base"] == "yes", row
            assert row.background["all"] == "yes", row
        if "arith: all = mean without background" in row.notes:
            assert row.background["base"] == "no", row
            assert row.background["all"] == "no", row
        if row.figures["base"] is None:
            assert row.background["base"] == "unknown", row


def test_a_recipe_is_found_for_the_network_that_it_was_written_for() -> None:
    recipes = read_recipes()
    found = {(row.method, row.backbone, row.dataset): recipe_of(row, recipes) for row in ROWS}
    plop = found["PLOP", "resnet101", "voc"]
    assert plop is not None
    assert plop.text("epochs_base", "voc") == "30"
    assert found["PLOP", "mit_b2", "voc"] is None
    lwf = found["LwF", "resnet101", "voc"]
    assert lwf is not None
    assert (lwf.text("epochs_base", "voc"), lwf.text("epochs_base", "ade20k")) == ("30", "60")


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("\t6.2\tno\t", "\t6.2\tmaybe\t", "expected yes, no or unknown, found 'maybe'"),
        ("\t6.2\t", "\t620\t", "expected a percentage, found 620"),
        ("\tdeeplabv3\t", "\t", "expected 16 cells"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line(right: str, wrong: str, told: str, tmp_path: Path) -> None:
    header, first, *_ = FIGURES.read_text(encoding="utf-8").splitlines()
    assert right in first
    (tmp_path / "rows.tsv").write_text(f"{header}\n{first.replace(right, wrong, 1)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"rows\.tsv:2: .*{told}"):
        read_rows(tmp_path / "rows.tsv")
