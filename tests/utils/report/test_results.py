"""utils/report: what a run leaves can be read back and says what was measured."""

import csv
import io
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from utils.files import write_atomic
from utils.report.plots import draw_forgetting, draw_miou_over_steps, draw_per_class_iou
from utils.report.results import (
    build_results,
    environment,
    format_table,
    load_confusion,
    make_step_entry,
    save_confusion,
    write_results,
)
from utils.report import results as report

NAMES = [
    "background",
    "cat",
    "step",
    "a, b",
]  # ADE20K has a class "step"; a folder's classes may hold anything
HISTORY = [np.array([0.8, 0.6, np.nan]), np.array([0.7, 0.5, np.nan, 0.25])]
MIOUS = ["miou_all", "miou_old", "miou_new", "miou_base", "miou_incremental", "hiou"]


def make_entry(names: Sequence[str], history: list[Any], num_base: int) -> dict[str, Any]:
    num_old = len(history[-2]) if len(history) > 1 else 0
    return make_step_entry(
        step_index=len(history) - 1,
        new_class_names=names[num_old : len(history[-1])],
        iou_history=history,
        class_names_seen=names[: len(history[-1])],
        num_old=num_old,
        num_new=len(history[-1]) - num_old,
        num_base=num_base,
        num_train_images=100 + len(history),
        num_val_images=30,
        seconds=12.345,
    )


def make_results(names: Sequence[str], history: list[Any], **fields: Any) -> dict[str, Any]:
    steps = [make_entry(names, history[: step + 1], len(history[0])) for step in range(len(history))]
    facts = {
        "task": "2-1",
        "setting": "overlap",
        "method": "mbs",
        "dataset": "folder",
        "seed": 3,
        "device": "cpu",
    }
    return build_results(class_names=names, steps=steps, **{**facts, **fields})


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results(NAMES, HISTORY)


def test_results_json_has_exactly_the_agreed_keys_and_values(tmp_path: Path, results: dict[str, Any]) -> None:
    write_results(tmp_path, results)
    loaded = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert loaded == results
    assert set(loaded) == {
        *("task", "setting", "method", "dataset", "class_names", "steps"),
        *("seed", "commit", "versions", "device", "miou_avg"),
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


def test_groups_name_the_classes_that_every_convention_averages(results: dict[str, Any]) -> None:
    first, second = (step["groups"] for step in results["steps"])
    assert list(second) == ["mib", "plop", "mbs"]
    # "step" has no IoU; at step 0 nothing is old, and PLOP's background is new.
    none: dict[str, Any] = {"classes": [], "miou": None}
    cat, new = {"classes": ["cat"], "miou": 0.6}, {"classes": ["a, b"], "miou": 0.25}
    both = {"classes": ["background", "cat"], "miou": pytest.approx(0.7)}
    assert first["mib"] == {"all": cat, "old": none, "new": cat, "base": cat, "incremental": none}
    assert first["plop"] == {"all": both, "old": none, "new": both, "base": both, "incremental": none}
    assert first["mbs"] == {"all": both, "old": none, "new": cat, "base": cat, "incremental": none}
    cat = {"classes": ["cat"], "miou": 0.5}
    both = {"classes": ["background", "cat"], "miou": pytest.approx(0.6)}
    three = {"classes": ["background", "cat", "a, b"], "miou": pytest.approx(1.45 / 3)}
    two = {"classes": ["cat", "a, b"], "miou": 0.375}
    assert second["mib"] == {"all": two, "old": cat, "new": new, "base": cat, "incremental": new}
    assert second["plop"] == {"all": three, "old": both, "new": new, "base": both, "incremental": new}
    assert second["mbs"] == {"all": three, "old": cat, "new": new, "base": cat, "incremental": new}


def test_groups_tell_old_from_base_and_leave_out_a_background_that_is_void() -> None:
    history = [np.array([np.nan, 0.8]), np.array([np.nan, 0.6, 0.4]), np.array([np.nan, 0.5, 0.3, np.nan])]
    groups = make_results(["other", "wall", "sky", "sea"], history)["steps"][2]["groups"]
    known = {"classes": ["wall", "sky"], "miou": 0.4}
    expected = {
        "all": known,
        "old": known,
        "new": {"classes": [], "miou": None},
        "base": {"classes": ["wall"], "miou": 0.5},
        "incremental": {"classes": ["sky"], "miou": 0.3},
    }
    assert groups == dict.fromkeys(["mib", "plop", "mbs"], expected)


def test_miou_avg_is_the_mean_of_miou_all_over_the_steps_so_far(results: dict[str, Any]) -> None:
    assert results["miou_avg"] == pytest.approx((0.7 + 1.45 / 3) / 2)
    assert make_results(NAMES, HISTORY[:1])["miou_avg"] == pytest.approx(0.7)
    assert make_results(NAMES, [np.full(3, np.nan)])["miou_avg"] is None


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


def test_results_md_shows_the_run_and_percentages(tmp_path: Path, results: dict[str, Any]) -> None:
    write_results(tmp_path, results)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
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


def test_a_pipe_in_a_class_name_does_not_break_the_markdown_table(tmp_path: Path) -> None:
    write_results(tmp_path, make_results(["background", "x|y"], [np.array([0.5, 0.5])]))
    assert "| x\\|y | 50.0 |" in (tmp_path / "results.md").read_text(encoding="utf-8")


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


@pytest.mark.parametrize(
    "names", [["background", "cat"], ["background", "cat", "cat"], ["background", "cat", "dog", "cow"]]
)
def test_names_that_do_not_fit_the_ious_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="class_names_seen: expected 3 different names"):
        make_step_entry(
            step_index=0,
            new_class_names=names,
            iou_history=[np.ones(3)],
            class_names_seen=names,
            num_old=0,
            num_new=3,
            num_base=3,
            num_train_images=1,
            num_val_images=1,
            seconds=1.0,
        )


def test_plots_are_written_as_readable_png(tmp_path: Path, results: dict[str, Any]) -> None:
    write_results(tmp_path, results)
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert written == ["forgetting.png", "miou_over_steps.png", "per_class_iou.png"]
    for name in written:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.format == "PNG"
            image.load()
            assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 2


def test_one_step_has_plots_too_and_nothing_to_forget() -> None:
    results = make_results(["background", "cost in $ and $"], [np.array([0.5, np.nan])], task="offline")
    for draw in (draw_miou_over_steps, draw_per_class_iou, draw_forgetting):
        assert Image.open(io.BytesIO(draw(results))).format == "PNG"


def test_a_heat_map_of_many_classes_is_taller_and_stays_within_bounds() -> None:
    few = make_results([f"c{index}" for index in range(5)], [np.full(4, 0.5), np.full(5, 0.5)])
    many = make_results([f"c{index}" for index in range(151)], [np.full(101, 0.5), np.full(111, 0.5)])
    sizes = [Image.open(io.BytesIO(draw_per_class_iou(each))).size for each in (few, many)]
    assert sizes[1][1] > 2 * sizes[0][1]
    assert max(sizes[1]) < 6000


def test_forgetting_can_be_drawn_where_no_class_has_an_iou_now() -> None:
    history = [np.array([0.5, 0.5]), np.array([0.5, 0.4, 0.5]), np.array([0.5, np.nan, np.nan, 0.5])]
    assert Image.open(io.BytesIO(draw_forgetting(make_results(list("abcd"), history)))).format == "PNG"


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


def test_write_atomic_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "first")
    write_atomic(path, "zweite Fassung – größer")
    assert path.read_text(encoding="utf-8") == "zweite Fassung – größer"
    write_atomic(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_write_atomic_keeps_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_environment_names_the_commit_and_the_versions() -> None:
    facts = environment()
    assert set(facts) == {"commit", "versions"}
    assert facts["versions"]["numpy"] == np.__version__
    assert {"python", "torch", "torchvision", "timm"} <= set(facts["versions"])
    json.dumps(facts)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_the_full_hash_marked_dirty_when_changed_and_none_outside_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("GIT_DIR", raising=False)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert report._git_commit(tmp_path) is None
    git("init", "--quiet")
    assert report._git_commit(tmp_path) is None  # no commit yet
    (tmp_path / "file.txt").write_text("one", encoding="utf-8")
    git("add", "file.txt")
    git("commit", "--quiet", "--message", "one")
    git("tag", "-a", "v1", "--message", "v1")
    head = git("rev-parse", "HEAD")
    assert report._git_commit(tmp_path) == head
    (tmp_path / "file.txt").write_text("two, longer", encoding="utf-8")
    assert report._git_commit(tmp_path) == f"{head}-dirty"
