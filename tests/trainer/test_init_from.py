"""A run from another run's base step is the run that trained it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data import Mask, write_folder
from tests.support.training import SEGMENTER, WORKER, assert_equal_states, tiny, train, weights
from trainer.checkpoint import checkpoint_path
from trainer.config import Config, load_config
from trainer.plan import prepare


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    config = tiny(tmp_path_factory.mktemp("base"), "base")
    return config, train(config)


def other_run(base: Config, log: str, *overrides: str) -> Config:
    path = base.output_dir.parent / "tiny.yaml"
    return load_config(path, [f"init_from={checkpoint_path(base.run_dir, 0)}", *overrides], log=log)


def test_a_run_from_another_base_step_equals_the_run_that_trained_it(
    base: tuple[Config, dict[str, Any]],
) -> None:
    config = other_run(base[0], "again")
    results = train(config)
    for step in (0, 1):
        assert_equal_states(weights(config, step), weights(base[0], step))
    assert results["steps"][0].pop("taken_from") == config.init_from
    for ours, theirs in zip(results["steps"], base[1]["steps"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert results["steps"][0]["seconds"] == base[1]["steps"][0]["seconds"]
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [x["iteration"] for x in lines if "loss" in x] == list(range(len(lines) - 2))


def test_another_method_starts_from_the_same_base(base: tuple[Config, dict[str, Any]]) -> None:
    config = other_run(base[0], "finetune", "method=finetune")
    results = train(config)
    assert results["steps"][0]["miou_all"] == base[1]["steps"][0]["miou_all"]
    assert results["steps"][1]["per_class_iou"] != base[1]["steps"][1]["per_class_iou"]


def test_the_base_is_read_once_and_a_rerun_does_not_need_it(base: tuple[Config, dict[str, Any]]) -> None:
    folder = base[0].run_dir.parent
    shutil.copy(checkpoint_path(base[0].run_dir, 0), folder / "moved.pth")
    config = other_run(base[0], "moved", f"init_from={folder / 'moved.pth'}")
    first = train(config)
    (folder / "moved.pth").unlink()
    assert train(config) == first


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["task=[[disc, ring], [star]]"],
            r"knows the classes background, ring, disc, but step 0 .* disc, ring",
        ),
        (["model.channels=16"], r"holds another model \(model: channels: 8 → 16, there → here\)"),
        (["init_from=/no/such.pth"], r"/no/such\.pth: no such checkpoint"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_before_training(
    base: tuple[Config, dict[str, Any]], overrides: list[str], told: str
) -> None:
    config = other_run(base[0], "refused", *overrides)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        prepare(config, WORKER)
    assert not config.run_dir.exists()


def test_a_base_trained_at_another_crop_is_refused_where_the_model_depends_on_it(tmp_path: Path) -> None:
    source = tiny(tmp_path, "vit", *SEGMENTER, "task=[[ring, disc]]")
    train(source)
    config = other_run(source, "larger", *SEGMENTER, "train.crop_size=64")
    with pytest.raises(ValueError, match=r"init_from: .*step_0\.pth: .* does not fit .*pos_embed"):
        prepare(config, WORKER)


def test_a_base_step_that_is_taken_over_needs_no_images(base: tuple[Config, dict[str, Any]]) -> None:
    masks: dict[str, Mask] = {f"img{i}": np.full((32, 32), 3, np.uint8) for i in range(4)}
    names = ["ring", "disc", "comet"]
    root = write_folder(base[0].output_dir.parent / "new_data", names, masks, masks)
    data = [f"data.root={root}", "data.name=folder", "task=[[ring, disc], [comet]]"]
    plan = prepare(other_run(base[0], "new", *data), WORKER)
    assert [len(ids) for ids in plan.image_ids] == [0, 4]
