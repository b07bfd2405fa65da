"""Several ranks train and score as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.cli import set_fields, write_tiny_config
from tests.support.runs import Workplace
from tests.support.struck import run_ranks
from tests.support.training import SEGMENTER, WORKER
from trainer.checkpoint import checkpoint_path, load_checkpoint, restore_model
from trainer.config import load_config
from trainer.plan import prepare
from trainer.validation import validate


def test_two_ranks_validate_every_image_once(place: Workplace) -> None:
    for step in (0, 1):
        one, two = (np.array(place.finished(name).confusion(step)[1]) for name in ("shapes", "two_ranks"))
        assert (one.sum(axis=1) == two.sum(axis=1)).all()
        assert one.sum() > 0


def test_two_ranks_train_on_the_same_images_in_as_many_iterations(place: Workplace) -> None:
    one, two = place.finished("shapes"), place.finished("two_ranks")
    assert [one.train_images(step) for step in (0, 1)] == [two.train_images(step) for step in (0, 1)]
    schedule = [[(line["iteration"], line["lr"]) for line in run.metrics()] for run in (one, two)]
    assert schedule[0] == schedule[1]
    assert two.results["device"] == "2 × cpu"


def test_two_ranks_write_and_speak_once(place: Workplace) -> None:
    for name in ("two_ranks", "joint"):
        run = place.finished(name)
        assert run.process.stdout.count("(percent)") == 1
        assert (run.folder / "log.txt").read_text().count("(percent)") == 1
        assert [line["step"] for line in run.metrics(evaluation=True)] == [0, 1]


def test_ranks_say_that_batch_norm_is_not_synchronised_on_cpus(place: Workplace) -> None:
    assert "CPUs have no SyncBN" in place.finished("two_ranks").process.stdout
    assert "SyncBN" not in place.finished("shapes").process.stdout


def test_two_ranks_run_a_segmenter_with_held_out_images_through_the_command_line(tmp_path: Path) -> None:
    path = write_tiny_config(tmp_path)
    fields = set_fields(*SEGMENTER, "val_fraction=0.25", "checkpoint=best_holdout", "train.num_epochs=2")
    process = run_ranks("--config", path, "--log", "two", *fields)
    assert process.returncode == 0, process.stderr
    folder = tmp_path / "runs" / "two"
    results = json.loads((folder / "results.json").read_text())
    assert [len(step["per_class_iou"]) for step in results["steps"]] == [3, 5]
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["name"] == "segmenter"
    terms = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("embedding_distillation" in x for x in terms if x["step"] == 1 and "loss" in x)
    # Both ranks kept the same epoch: the score of its checkpoint, over the images of both, is the one it was kept for.
    config = load_config(path, [f.replace("--set ", "") for f in fields if f != "--set"], log="two")
    plan = prepare(config, WORKER)
    for step in plan.task.steps:
        model = restore_model(config, load_checkpoint(checkpoint_path(folder, step.index))).eval()
        iou = validate(plan.evaluation, step, model, WORKER).iou
        stored = list(results["steps"][step.index]["per_class_iou"].values())
        assert iou.tolist() == pytest.approx([np.nan if x is None else x for x in stored], nan_ok=True)
