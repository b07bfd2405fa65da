"""However many ranks train and however a batch is cut into micro-batches, a run ends with the same scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import trainer.run
from tests.support.loaded import start
from tests.support.training import SEGMENTER, tiny, train, weights
from trainer.checkpoint import checkpoint_path
from trainer.config import Config
from trainer.plan import prepare
from utils.distributed import Worker

COMMON = ("train.batch_size=8", "evaluate.batch_size=1", "logging.num_panels=0")
LEARNS = (  # long enough to tell classes apart
    *("train.batch_size=4", "train.num_epochs=10", "train.num_epochs_incremental=1"),
    *("train.optimizer=adamw", "train.lr_base=3e-3", "train.lr_head_factor=1"),
)


def train_rank(rank: int, num_ranks: int, config: Config, dtype: torch.dtype) -> None:
    """One process of a run."""
    torch.set_default_dtype(dtype)
    store = f"file://{config.output_dir}/{config.log}_store"
    dist.init_process_group("gloo", store, timedelta(minutes=2), rank=rank, world_size=num_ranks)
    try:
        worker = Worker(torch.device("cpu"), rank, num_ranks)
        trainer.run.run(prepare(config, worker), worker)
    finally:
        dist.destroy_process_group()


def train_layout(ranks: int, config: Config) -> dict[str, Any]:
    """A run of several processes; returns its results.json."""
    if ranks == 1:
        return train(config)
    dtype = torch.get_default_dtype()
    processes = [start(train_rank, rank, ranks, config, dtype) for rank in range(ranks)]
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0] * ranks
    results: dict[str, Any] = json.loads((config.run_dir / "results.json").read_text())
    return results


def assert_same_scores(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for our_step, their_step in zip(ours["steps"], theirs["steps"], strict=True):
        assert our_step["train_images_sha256"] == their_step["train_images_sha256"]
        assert our_step["per_class_iou"] == pytest.approx(their_step["per_class_iou"], abs=2e-3)
        assert our_step["miou_all"] == pytest.approx(their_step["miou_all"], abs=1e-3)


def test_with_frozen_batch_norm_ranks_and_micro_batches_change_scores_by_rounding_only(
    tmp_path: Path,
) -> None:
    base = tiny(tmp_path, "base", *LEARNS)
    train(base)
    fields = (*COMMON, "train.num_epochs=2", f"init_from={checkpoint_path(base.run_dir, 0)}")
    expected = train(tiny(tmp_path, "whole", *fields))
    last = expected["steps"][-1]["per_class_iou"].values()
    assert sum(iou is not None and iou > 0.05 for iou in last) > 1
    for ranks, accumulate in ((2, 2), (4, 1)):
        cut = tiny(tmp_path, f"{ranks}x{accumulate}", *fields, f"train.accumulate={accumulate}")
        assert_same_scores(train_layout(ranks, cut), expected)


@pytest.fixture
def _float64() -> Iterator[None]:
    """Networks that are built have float64 weights."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all weights, that of each tensor over the tensor's own norm."""
    parts = [(x - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-3) for name, x in ours.items()]
    return float(torch.stack(parts).norm())


@pytest.mark.usefixtures("_float64")
def test_without_batch_norm_they_leave_the_weights_of_a_run_in_float64(tmp_path: Path) -> None:
    fields = (*COMMON, *SEGMENTER, "model.drop_path=0", "train.num_epochs=2")
    whole = tiny(tmp_path, "whole", *fields)
    expected = train(whole)
    assert weights(whole, 1)["backbone.patch_embed.proj.weight"].dtype == torch.float64
    for ranks, accumulate in ((1, 4), (4, 1)):
        cut = tiny(tmp_path, f"{ranks}x{accumulate}", *fields, f"train.accumulate={accumulate}")
        assert_same_scores(train_layout(ranks, cut), expected)
        for step in (0, 1):
            assert 0 < distance(weights(cut, step), weights(whole, step)) < 1e-11
