"""utils/files.py: a file is whole or not there."""

import os
from pathlib import Path

import pytest

from utils.files import remove_unfinished, write_atomic


def test_write_atomic_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "first")
    write_atomic(path, "zweite Fassung – größer")
    assert path.read_text(encoding="utf-8") == "zweite Fassung – größer"
    write_atomic(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_write_atomic_keeps_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / f".{'0af' * 10}12.tmp", tmp_path / "checkpoints" / f".{'7' * 32}.tmp"]
    kept = [tmp_path / "a.tmp", tmp_path / ".a.tmp", tmp_path / "checkpoints" / "step_0.pth"]
    for path in (*left, *kept):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_unfinished(tmp_path)
    assert [path.exists() for path in (*left, *kept)] == [False] * 2 + [True] * 3
