"""Mid-step saves: when they are due, and the random states in them."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from datasets.tasks import Step
from tests.support.training import WORKER, tiny
from trainer.checkpoint import load_saved, save
from trainer.plan import Plan
from trainer.progress import MidStepSaves, progress_paths, random_state, set_random_state
from trainer.session import Session
from utils.logging import RunLog
from utils.signals import Interruption


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    save(tmp_path / "state.pth", random_state(WORKER))
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist())  # noqa: NPY002
    torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
    set_random_state(load_saved(tmp_path / "state.pth"), WORKER)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()) == expected  # noqa: NPY002


@pytest.mark.parametrize(("every", "due"), [(3, [3, 6]), ("0.5m", [2, 5])])
def test_saves_are_due_every_so_many_iterations_or_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int | str, due: list[int]
) -> None:
    seconds = iter([0.0, 10.0, 31.0, 31.0, 40.0, 60.0, 62.0, 62.0, 63.0])  # read again after each save
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    config = tiny(tmp_path, "run", f"save_every={every}")
    plan = cast(Plan, SimpleNamespace(config=config))
    session = Session(plan, WORKER, RunLog(tmp_path, is_main=False), Interruption())
    saves = MidStepSaves(session, Step(0, 0, 3))
    for num_done in range(1, 7):
        saves.after_iteration(num_done, {})
        found = [path.name for path in progress_paths(config.run_dir, 0)]
        assert found == [f"step_0.iteration_{i:09d}.pth" for i in reversed(due) if i <= num_done]


@pytest.mark.parametrize("every", ["0", "-3", "10h", "m", "true", "2.5"])
def test_a_length_that_is_none_is_refused(tmp_path: Path, every: str) -> None:
    with pytest.raises(ValueError, match=r"save_every"):
        tiny(tmp_path, "run", f"save_every={every}")
