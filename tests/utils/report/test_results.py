"""utils/report/results.py: what results.json says of a step, of the run, and of what it ran on."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.results import HISTORY, NAMES, make_results
from utils.report import results as report
from utils.report.results import environment, make_step_entry


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results(NAMES, HISTORY)


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


def test_the_line_of_mbs_leaves_classes_without_a_hit_out_of_all_and_of_nothing_else() -> None:
    groups = make_results(["background", "cat", "dog"], [np.array([0.8, 0.0]), np.array([0.6, 0.4, 0.0])])[
        "steps"
    ]
    first, second = (step["groups"] for step in groups)
    assert first["mbs"]["all"] == {"classes": ["background"], "miou": 0.8}
    assert first["mbs"]["base"] == {"classes": ["cat"], "miou": 0.0}
    assert second["mbs"]["all"] == {"classes": ["background", "cat"], "miou": 0.5}
    assert second["mbs"]["new"] == {"classes": ["dog"], "miou": 0.0}
    assert second["plop"]["all"] == {"classes": ["background", "cat", "dog"], "miou": pytest.approx(1 / 3)}


def test_lines_whose_background_counts_in_another_way_have_their_own_ious() -> None:
    names, void, counted = ["other", "wall", "sky"], [np.nan, 0.8, 0.6], [0.1, 0.5, 0.3]
    entry = make_step_entry(
        step_index=0,
        new_class_names=names,
        iou_history=[np.array(void)],
        iou_of={"mib": np.array(void), "plop": np.array(counted), "mbs": np.array(counted)},
        class_names_seen=names,
        num_old=0,
        num_new=3,
        num_base=3,
        num_train_images=1,
        num_val_images=1,
        seconds=1.0,
    )
    assert entry["miou_all"] == pytest.approx(0.7)
    found = {name: entry["groups"][name]["all"]["miou"] for name in entry["groups"]}
    assert found == pytest.approx({"mib": 0.7, "plop": 0.3, "mbs": 0.3})
    assert entry["groups"]["mbs"]["base"]["miou"] == pytest.approx(0.4)
    by_name = {"other": 0.1, "wall": 0.5, "sky": 0.3}
    assert entry["per_class_iou_of"] == {"plop": by_name, "mbs": by_name}


def test_miou_avg_is_the_mean_of_miou_all_over_the_steps_so_far(results: dict[str, Any]) -> None:
    assert results["miou_avg"] == pytest.approx((0.7 + 1.45 / 3) / 2)
    assert make_results(NAMES, HISTORY[:1])["miou_avg"] == pytest.approx(0.7)
    assert make_results(NAMES, [np.full(3, np.nan)])["miou_avg"] is None


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
