"""The same command again: it does what is missing, and refuses what would change results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.cli import call_main
from tests.support.runs import (
    Finished,
    Workplace,
    assert_same_weights,
    list_change_times,
    read_table,
    without_time,
)
from utils.report.pictures import read_panels


@pytest.fixture(scope="module")
def reruns(place: Workplace) -> dict[str, tuple[Finished, dict[Path, int]]]:
    """Copies of the finished run on shapes, harmed and run again; with each, its files' change times before."""
    copies = {name: place.copy("shapes", name) for name in ("rerun", "step_1_lost", "entry_lost")}
    (copies["step_1_lost"].folder / "checkpoints" / "step_1.pth").unlink()
    with (copies["step_1_lost"].folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "iter')  # cut off by a full disk
    for name in ("step_1_lost", "entry_lost"):
        path = copies[name].folder / "results.json"
        results = json.loads(path.read_text())
        path.write_text(json.dumps({**results, "steps": results["steps"][:1]}))
    # One as older code left it, without what report.html shows.
    (copies["step_1_lost"].folder / "task.json").unlink()
    shutil.rmtree(copies["step_1_lost"].folder / "panels")
    overrides = {"rerun": ["data.num_workers=1", "logging.every=7"]}
    before = {name: list_change_times(copy.folder) for name, copy in copies.items()}
    return {name: (place.run(name, *overrides.get(name, [])), before[name]) for name in copies}


def test_same_command_gives_identical_weights_with_any_number_of_workers(place: Workplace) -> None:
    ours, theirs = place.finished("shapes"), place.finished("again")
    for step in (0, 1):
        assert_same_weights(ours, theirs, step)
        assert ours.confusion(step) == theirs.confusion(step)
    assert without_time(ours.results) == without_time(theirs.results)


def test_a_run_that_older_code_began_has_a_report_of_what_there_is(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    run, _ = reruns["step_1_lost"]
    panels, problems = read_panels(run.folder, num_steps=2)
    assert problems == []
    assert [[mask is not None for mask in panel.predictions] for panel in panels] == [[False, True]] * 2
    assert (run.folder / "task.json").read_bytes() == (
        place.finished("shapes").folder / "task.json"
    ).read_bytes()
    assert "all 2 steps finished" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_rerun_of_a_finished_command_trains_nothing_whatever_workers_and_logging(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    run, before = reruns["rerun"]
    assert run.process.returncode == 0, run.process.stderr
    after = list_change_times(run.folder)
    assert {path.name for path in before if after[path] != before[path]} <= {
        "config.yaml",
        "task.json",
        "log.txt",
        ".lock",
    }
    assert after.keys() == before.keys()
    assert read_table(run) == read_table(place.finished("shapes"))
    assert "step 0:" not in run.process.stdout
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["data"]["num_workers"] == 1


def test_run_without_its_last_step_continues_there_to_identical_results(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    whole, (run, before) = place.finished("shapes"), reruns["step_1_lost"]
    assert run.process.returncode == 0, run.process.stderr
    step_0 = run.folder / "checkpoints" / "step_0.pth"
    assert step_0.stat().st_mtime_ns == before[step_0]
    assert "step 1: star, cross" in run.process.stdout
    assert "step 0:" not in run.process.stdout
    assert_same_weights(run, whole, 1)
    assert without_time(run.results) == without_time(whole.results)
    assert run.confusion(1) == whole.confusion(1)
    strip = {"images_per_second": None}
    assert [line | strip for line in run.metrics()] == [line | strip for line in whole.metrics()]
    assert run.metrics(evaluation=True) == whole.metrics(evaluation=True)


def test_step_that_was_trained_but_not_evaluated_is_only_evaluated(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    whole, (run, before) = place.finished("shapes"), reruns["entry_lost"]
    assert run.process.returncode == 0, run.process.stderr
    for path in run.folder.glob("checkpoints/*"):
        assert path.stat().st_mtime_ns == before[path]
    # The seconds of training lie in the checkpoint.
    assert run.results == whole.results
    assert (run.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("broken", ["missing", "unreadable"])
def test_step_without_its_old_model_is_an_error(place: Workplace, broken: str) -> None:
    """Never a teacher with random weights."""
    run = place.copy("shapes", f"step_0_{broken}")
    if broken == "missing":
        (run.folder / "checkpoints" / "step_0.pth").unlink()
    else:
        (run.folder / "checkpoints" / "step_1.pth").unlink()
        (run.folder / "checkpoints" / "step_0.pth").write_bytes(b"PK\x03\x04 cut off")
    before = list_change_times(run.folder / "checkpoints")
    outcome = call_main(*place.arguments(run.folder.name))
    assert outcome.returncode == 2
    assert str(run.folder / "checkpoints" / "step_0.pth") in outcome.stderr
    assert list_change_times(run.folder / "checkpoints") == before


def test_config_that_could_change_results_is_refused_under_an_existing_name(place: Workplace) -> None:
    run = place.finished("shapes")
    before = list_change_times(run.folder)
    outcome = call_main(*place.arguments("shapes", "train.lr_base=0.5", "data.num_workers=2"))
    assert outcome.returncode == 2
    assert "train.lr_base: 0.01 → 0.5" in outcome.stderr
    assert "--log" in outcome.stderr
    assert "num_workers" not in outcome.stderr
    assert list_change_times(run.folder) == before


def test_config_of_the_last_checkpoint_counts_where_the_file_is_gone(place: Workplace) -> None:
    run = place.copy("shapes", "no_config_file")
    (run.folder / "config.yaml").unlink()
    outcome = call_main(*place.arguments("no_config_file", "train.lr_base=0.5"))
    assert outcome.returncode == 2
    assert "holds a run with another config (train.lr_base: 0.01 → 0.5" in outcome.stderr
    assert call_main(*place.arguments("no_config_file"), "--dry-run").returncode == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "not the results of a run"),
        ("{}", "not the results of a run"),
        ('{"steps": 3}', "not the results of a run"),
    ],
)
def test_damaged_results_are_named_with_what_to_do(place: Workplace, content: str, reason: str) -> None:
    path = place.finished("shapes").folder.with_name("damaged") / "results.json"
    if not path.exists():
        place.copy("shapes", "damaged")
    path.write_text(content)
    outcome = call_main(*place.arguments("damaged"))
    assert outcome.returncode == 2
    assert f"error: {path}: {reason}" in outcome.stderr
    assert "delete it" in outcome.stderr
    assert path.read_text() == content
