"""utils/report/run_files.py: what a run leaves can be read back and says what was measured."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.results import HISTORY, NAMES, make_results
from utils.files import write_atomic
from utils.report.run_files import load_confusion, save_confusion, write_plots, write_results
from utils.report.tables import format_markdown

MIOUS = ["miou_all", "miou_old", "miou_new", "miou_base", "miou_incremental", "hiou"]


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results(NAMES, HISTORY)


def test_results_json_has_exactly_the_agreed_keys_and_values(tmp_path: Path, results: dict[str, Any]) -> None:
    write_results(tmp_path, results)
    loaded = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert loaded == results
    assert set(loaded) == {
        *("task", "setting", "method", "dataset", "class_names", "steps"),
        *("seed", "commit", "versions", "device", "miou_avg", "val_images_sha256", "num_steps"),
    }
    assert loaded["class_names"] == NAMES
    first, second = loaded["steps"]
    assert list(first) == [
        *("step", "new_classes", *MIOUS, "forgetting", "per_class_iou", "without_background"),
        *("groups", "num_train_images", "num_val_images", "seconds"),
    ]
    assert list(second["without_background"]) == MIOUS
    assert first["per_class_iou"] == {"background": 0.8, "cat": 0.6, "step": None}
    assert second["per_class_iou"] == {"background": 0.7, "cat": 0.5, "step": None, "a, b": 0.25}
    assert (first["step"], first["new_classes"], first["miou_old"]) == (
        0,
        ["background", "cat", "step"],
        None,
    )
    assert (second["step"], second["new_classes"], second["num_train_images"]) == (1, ["a, b"], 102)
    assert second["forgetting"] == pytest.approx(0.1)
    assert second["seconds"] == 12.3


def test_results_csv_reads_back_to_the_same_numbers(tmp_path: Path, results: dict[str, Any]) -> None:
    write_results(tmp_path, results)
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1"]
    assert rows[0]["new_classes"] == "background, cat, step"
    for row, step in zip(rows, results["steps"], strict=True):
        cells = {key: float(value) if value else None for key, value in row.items() if key != "new_classes"}
        expected = {key: step[key] for key in ["step", *MIOUS, "forgetting"]}
        expected |= {f"{key}_without_background": step["without_background"][key] for key in MIOUS}
        expected |= {key: step[key] for key in ("num_train_images", "num_val_images", "seconds")}
        expected |= {f"iou_{name}": step["per_class_iou"].get(name) for name in NAMES}
        assert cells == expected


def test_results_md_is_the_markdown_of_the_results(tmp_path: Path, results: dict[str, Any]) -> None:
    write_results(tmp_path, results)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == format_markdown(results)


def test_plots_are_written_as_readable_png(tmp_path: Path, results: dict[str, Any]) -> None:
    write_plots(tmp_path, results)
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert written == ["forgetting.png", "miou_over_steps.png", "per_class_iou.png"]
    for name in written:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.format == "PNG"
            image.load()
            assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 2


def test_confusion_matrix_reads_back_exactly_with_its_names(tmp_path: Path) -> None:
    confusion = np.array([[5, 1, 0, 2**53 + 1], [0, 7, 2, 0], [3, 0, 0, 0], [0, 0, 1, 9]], dtype=np.int64)
    save_confusion(tmp_path, 1, confusion, NAMES)
    loaded = load_confusion(tmp_path, 1)
    assert loaded.dtype == np.int64
    np.testing.assert_array_equal(loaded, confusion)
    with (tmp_path / "confusion" / "step_1.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == NAMES
    assert [row[0] for row in rows[1:]] == NAMES
    assert rows[2] == ["cat", "0", "7", "2", "0"]


def test_a_confusion_matrix_that_does_not_fit_its_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 class_names.*\(3, 3\)"):
        save_confusion(tmp_path, 0, np.zeros((3, 3), dtype=np.int64), NAMES)


def test_a_missing_or_damaged_confusion_matrix_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"step_2\.csv.*missing"):
        load_confusion(tmp_path, 2)
    path = tmp_path / "confusion" / "step_2.csv"
    for text in ("x,a,b\na,1,2\n", "x,a,b\na,1,2\nb,3\n", "x,a\na,1.5\n", ""):
        write_atomic(path, text)
        with pytest.raises(ValueError, match=r"step_2\.csv"):
            load_confusion(tmp_path, 2)
