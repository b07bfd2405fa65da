"""What tests of several modules share."""

import os

# Before PyTorch: tests run side by side, and threads that wait for a busy core spin.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest

from tests.support.cli import run_main, write_tiny_config
from tests.support.once import made_once, shared_folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run of two steps, as main.py leaves it; not to be changed."""
    return made_once(shared_folder(tmp_path_factory) / "finished", make_tiny_run) / "runs" / "run"


def make_tiny_run(folder: Path) -> None:
    result = run_main("--config", write_tiny_config(folder, report=True), "--log", "run")
    assert result.returncode == 0, result.stderr
