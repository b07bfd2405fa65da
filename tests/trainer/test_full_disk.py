"""Where files cannot be written, the older ones stay and the message names path and bytes."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from tests.support.training import tiny, train
from trainer.checkpoint import load_saved, save
from trainer.progress import progress_paths
from utils.files import SaveError, write_atomic


def test_a_full_disk_is_told_with_path_and_bytes_and_the_older_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "step_0.pth"
    save(path, {"model": torch.zeros(3)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # no file may grow beyond it
    try:
        with pytest.raises(SaveError, match=r"step_0\.pth: cannot be written .* needs about 4.0 MB"):
            save(path, {"model": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_saved(path)["model"].tolist() == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["step_0.pth"], "nothing half written stays"


def test_a_disk_that_fills_up_while_a_step_trains_ends_the_run_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path, "run", "save_every=2", "train.num_epochs=3")
    saved: list[Any] = []
    write = torch.save

    def full(state: Any, file: Any) -> None:
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(state)
        write(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(
            SaveError, match=r"iteration_000000006\.pth: cannot be written \(No space left on device\)"
        ):
            train(config)
    assert [path.name[-5:] for path in progress_paths(config.run_dir, 0)] == ["4.pth", "2.pth"]
    train(config)


def test_curves_that_cannot_be_written_end_the_run_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("add_scalar", "flush", "close"):
        monkeypatch.setattr(SummaryWriter, name, full)
    monkeypatch.setattr(logging.StreamHandler, "flush", full)  # log.txt, too
    with pytest.raises(
        SaveError, match=r"tensorboard: cannot be written \(No space left on device\)"
    ) as caught:
        train(tiny(tmp_path, "run"))
    assert isinstance(caught.value.__cause__, OSError)
    told = capsys.readouterr().err
    assert told.count("log.txt: cannot be written any more") == 1
    assert "Logging error" not in told


def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    config = tiny(tmp_path, "run")
    with pytest.raises(ValueError, match=r"/runs: is no folder, but .*/runs/run needs one; move it"):
        train(config)


def test_results_that_cannot_be_written_leave_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        SaveError, match=r"results\.json: cannot be written \(No space left on device\).* 3 B,"
    ):
        write_atomic(path, "new")
    assert path.read_text() == "old"
