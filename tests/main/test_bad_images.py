"""A run that meets a bad image ends with its name, or goes on without it, on every rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.data import Mask, cut_short, stripes, write_folder
from tests.support.struck import run_ranks

CLASSES = ["pear", "kiwi"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, and data in which the second step's image b3 (in `train`) or the image v5 (in `val`) is cut short."""
    workdir = tmp_path_factory.mktemp("bad_data")
    write_tiny_config(workdir)

    def draw(names: str, *ids: int) -> dict[str, Mask]:
        return {f"{names}{i}": stripes(0, *ids, height=32, width=40) for i in range(8)}

    for name in ("train", "val"):
        train, val = draw("a", 1) | draw("b", 2), draw("v", 1, 2)
        root = write_folder(workdir / name, CLASSES, train, val)
        cut_short(root / "images" / name / {"train": "b3.jpg", "val": "v5.jpg"}[name])
    write_folder(workdir / "both", CLASSES, train, val)
    for split, image in (("train", "b3"), ("val", "v5")):
        cut_short(workdir / "both" / "images" / split / f"{image}.jpg")
    return workdir


def arguments(workdir: Path, data: str, name: str, *overrides: str) -> list[str]:
    fields = ["data.name=folder", f"data.root={workdir / data}", "task=[[pear], [kiwi]]", *overrides]
    return ["--config", str(workdir / "tiny.yaml"), "--log", name, *set_fields(*fields)]


def call_here(workdir: Path, *how: str) -> tuple[int, str]:
    """main.py in this process: its exit code and stderr."""
    process = call_main(*arguments(workdir, *how))
    return process.returncode, process.stderr


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / f"step_{step}.pth", weights_only=True)[
        "model"
    ]
    return state


def test_a_bad_image_met_by_a_data_worker_ends_the_run_and_skip_continues_it(workdir: Path) -> None:
    code, stderr = call_here(workdir, "train", "met", "data.num_workers=2")
    assert code == 2
    assert "error: training of step 1: wrong files (1); mend them, or leave them out" in stderr
    assert f"{workdir / 'train/images/train/b3.jpg'}: not an image" in stderr
    assert "Traceback" not in stderr
    run = workdir / "runs" / "met"
    assert "b3.jpg: not an image" in (run / "log.txt").read_text()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_0.pth"]
    assert len(json.loads((run / "results.json").read_text())["steps"]) == 1
    base = weights(run, 0)

    code, stderr = call_here(workdir, "train", "met", "data.on_error=skip")
    assert code == 2
    assert "training of step 1: 1 of 8 images cannot be read (12.5 %; data.max_skipped allows 1 %)" in stderr
    assert "b3.jpg" in stderr

    code, stderr = call_here(workdir, "train", "met", "data.on_error=skip", "data.max_skipped=0.125")
    assert code == 0
    assert all(torch.equal(base[name], tensor) for name, tensor in weights(run, 0).items())
    log = (run / "log.txt").read_text()
    assert log.count("training of step 1: 1 of 8 images cannot be read") == 2  # the refusal and the count
    assert "and are left out:\n  " in log


def test_a_bad_validation_image_ends_the_run_after_the_step_was_saved(workdir: Path) -> None:
    code, stderr = call_here(workdir, "val", "val_raise")
    assert code == 2
    assert "error: evaluation of step 0: wrong files (1)" in stderr
    assert "v5.jpg: not an image" in stderr
    assert "Traceback" not in stderr
    assert (workdir / "runs" / "val_raise" / "checkpoints" / "step_0.pth").exists()


def test_skipped_images_are_counted_and_named_once_over_all_ranks(workdir: Path) -> None:
    skip = ["data.on_error=skip", "data.max_skipped=0.2", "data.num_workers=1"]
    process = run_ranks(*arguments(workdir, "both", "skip", *skip))
    assert process.returncode == 0, process.stderr
    run = workdir / "runs" / "skip"
    log = (run / "log.txt").read_text()
    assert log.count("training of step 1: 1 of 8 images cannot be read (12.5 %") == 1
    assert log.count("b3.jpg: not an image") == 1
    assert "training of step 0" not in log
    assert [log.count(f"evaluation of step {step}: 1 of 8 images") for step in (0, 1)] == [1, 1]
    assert log.count("v5.jpg: not an image") == 2
    steps = json.loads((run / "results.json").read_text())["steps"]
    assert [step["num_val_images"] for step in steps] == [7, 7]


def test_a_bad_image_in_one_rank_is_told_by_that_rank(workdir: Path) -> None:
    process = run_ranks(*arguments(workdir, "train", "one_rank"))
    assert process.returncode != 0
    assert process.stderr.count("error: training of step 1: wrong files (1)") == 1
    assert "b3.jpg: not an image" in process.stderr


def test_images_on_which_nothing_trains_are_told_too(workdir: Path) -> None:
    how = ["train", "solved", "method=segacil"]
    code, stderr = call_here(workdir, *how)
    assert code == 2
    assert "error: images of step 1: wrong files (1); mend them" in stderr
    assert "b3.jpg: not an image" in stderr
    code, stderr = call_here(workdir, *how, "data.on_error=skip", "data.max_skipped=0.2")
    assert code == 0, stderr
    log = (workdir / "runs" / "solved" / "log.txt").read_text()
    assert log.count("images of step 1: 1 of 8 images cannot be read (12.5 %") == 1
