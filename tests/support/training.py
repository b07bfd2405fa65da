"""Runs in this process, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.support.cli import write_tiny_config
from trainer.checkpoint import checkpoint_path, digest, load_checkpoint
from trainer.config import Config, load_config
from trainer.plan import prepare
from trainer.run import run
from utils.distributed import Worker

WORKER = Worker(torch.device("cpu"))
SEGMENTER = (
    *("model.name=segmenter", "model.backbone=test_vit", "model.channels=8"),
    *("model.patch_size=8", "model.num_heads=2"),
)


def tiny(folder: Path, log: str, *overrides: str) -> Config:
    """The config of a tiny run whose report is not drawn, as long as `overrides` do not ask for it."""
    return load_config(write_tiny_config(folder), overrides, log=log)


def train(config: Config) -> dict[str, Any]:
    """Run a config in this process and return its results.json."""
    run(prepare(config, WORKER), WORKER)
    results: dict[str, Any] = json.loads((config.run_dir / "results.json").read_text())
    return results


def weights(config: Config, step: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(checkpoint_path(config.run_dir, step))["model"]
    return state


def assert_equal_states(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def outcome(run_dir: Path, num_steps: int = 2) -> dict[str, Any]:
    """All that a run leaves but for times."""
    results = json.loads((run_dir / "results.json").read_text())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name in line.keys() - {"step", "iteration", "epoch", "images_per_second"}:
            curves.setdefault(name, []).append((line["iteration"], line[name]))
    return {
        "weights": [
            digest([checkpoint[name] for name in ("model", "parts", "method_state")])
            for checkpoint in (load_checkpoint(checkpoint_path(run_dir, step)) for step in range(num_steps))
        ],
        "results": {**results, "steps": [{**step, "seconds": 0} for step in results["steps"]]},
        "curves": curves,
        "files": sorted(path.name for path in (run_dir / "checkpoints").iterdir()),
    }
