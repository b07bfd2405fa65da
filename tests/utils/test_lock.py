"""utils/lock.py: one run in a folder at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import ROOT
from utils.lock import RunLockedError, find_holder, lock

HOLD = """
import sys
from pathlib import Path
from utils.files import SaveError, write_atomic
from utils.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=-1, stdout=-1, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    told = rf"run of this name is under way \(process {holder.pid} on "
    with pytest.raises(RunLockedError, match=told), lock(tmp_path):
        pass
    assert find_holder(tmp_path) == f"process {holder.pid} on {platform.node()}"


def test_the_lock_of_a_killed_run_is_stale(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid
    assert find_holder(tmp_path) == ""
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def test_the_lock_of_another_machine_is_respected_and_an_ended_one_is_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(
        json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01 00:00:00"})
    )
    with (
        pytest.raises(RunLockedError, match=r"process 1 on elsewhere since 2026.* delete .*\.lock"),
        lock(tmp_path),
    ):
        pass
    assert find_holder(tmp_path).startswith("process 1 on elsewhere; if it is gone for certain, delete ")
    (tmp_path / ".lock").write_text("")
    assert find_holder(tmp_path) == find_holder(tmp_path / "nowhere") == ""
    with lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    told = r"\.lock: cannot be locked \(No locks available\): the file system .* choose an output_dir"
    with pytest.raises(RunLockedError, match=told), lock(tmp_path):
        pass
