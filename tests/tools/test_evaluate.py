"""tools/evaluate.py: the figures of training, from the checkpoint alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import call_tool
from tools.evaluate import UNKNOWN, main


def read_entry(run: Path, step: int) -> dict[str, object]:
    """What results.json says of a step, without what a checkpoint alone does not know."""
    entry = json.loads((run / "results.json").read_text())["steps"][step]
    return {
        name: value
        for name, value in entry.items()
        if name not in {*UNKNOWN, "checkpoint", "train_images_sha256"}
    }


def test_the_command_line_gives_the_figures_of_training_to_the_last_digit(
    finished_run: Path, tmp_path: Path
) -> None:
    json_path = tmp_path / "figures.json"
    path = finished_run / "checkpoints" / "step_1.pth"
    result = call_tool("evaluate", path, "--json", json_path, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    expected = read_entry(finished_run, 1)
    assert json.loads(json_path.read_text()) == expected
    assert f"miou_all         {100 * float(str(expected['miou_all'])):6.1f}\n" in result.stdout


def test_the_precision_may_be_left_to_the_machine(finished_run: Path) -> None:
    path = finished_run / "checkpoints" / "step_1.pth"
    result = call_tool("evaluate", path, "--set", "train.amp=auto", "--device", "cpu")
    assert result.returncode == 0, result.stderr


def test_every_step_is_evaluated_on_the_classes_that_it_knows(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert (
        main([str(finished_run / "checkpoints" / "step_0.pth"), "--json", str(path), "--device", "cpu"]) == 0
    )
    assert json.loads(path.read_text()) == read_entry(finished_run, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "task=[[disc, ring], [star, cross]]",
            "task: the checkpoint has learned background, ring, disc, star",
        ),
        ("task=[[ring, disc, star, cross]]", "but it is background, ring, disc, star, cross in 1 steps"),
        ("evaluate.mode=half", "--set: evaluate.mode: "),
        ("data.name=voc", "VOC2012"),
        ("data.name=folder", "classes.txt: no such file"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_one_message_and_exit_code_2(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    data = ["--data", str(tmp_path)] if override.startswith("data.name") else []
    with pytest.raises(SystemExit) as caught:
        main([str(finished_run / "checkpoints" / "step_1.pth"), *data, "--set", override])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_data_for_a_checkpoint_that_draws_its_own_are_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(finished_run / "checkpoints" / "step_1.pth"), "--data", str(tmp_path), "--device", "cpu"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --data {tmp_path}: data.name=shapes lies in no files; leave --data out\n"
    )
