"""Files that are either whole or not there, and what is said where they cannot be written."""

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.errors import DataError, RunError, explain
from utils.units import format_size

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class SaveError(RunError, OSError):
    """A file cannot be written; what was saved before is intact."""


def require_regular(path: Path) -> os.stat_result:
    """Return what is known of a regular file, links followed; reading a pipe or a device might never end.

    Raises OSError where there is none that can be reached, DataError where it is something else.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise DataError(f"{path}: is {kind}; give a regular file")
    return found


def check_writable(folder: Path) -> None:
    """Raise OSError or ValueError naming what keeps files from being written into a folder, made if need be."""
    for path in (folder, *folder.absolute().parents):
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise ValueError(f"{path}: is a link to nothing; remove it, or give another path") from None
            continue
        if not is_folder:
            raise ValueError(f"{path}: is no folder, but {folder} needs one; move it, or give another path")
        if not os.access(path, os.W_OK | os.X_OK):
            raise ValueError(f"{path}: cannot be written into; give write access, or give another path")
        return


def check_output(option: str, path: Path, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raise ValueError where writing `path` would replace an input, or any file without `overwrite`; OSError, too.

    option: what on the command line names `path`.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path}: is a folder; give the name of a file")
    for other in inputs:
        if path.exists() and other.exists() and path.samefile(other):
            raise ValueError(f"{option} {path}: is an input, which would be lost; give another name")
    if path.exists() and not overwrite:
        raise ValueError(
            f"{option} {path}: exists already; give another name, or replace it with --overwrite"
        )
    check_writable(path.parent)


@contextmanager
def writing(path: Path, num_bytes: int) -> Iterator[None]:
    """Raise SaveError naming path and size where the block cannot write `num_bytes` bytes, or so, to `path`."""
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{path}: cannot be written ({_reason(error)}); it needs about {format_size(num_bytes)}, "
            f"{_free_space(path)}. What was saved before is intact: make room or give write access, and rerun"
        ) from error


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` in one move once it is whole.

    A reader finds the old file or the new one. Missing parent folders are made. Raises OSError as the file
    system does, leaving an existing file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder keeps the move within one file system; a plain open, unlike mkstemp, respects the umask.
    # Jobs on several machines may write at once: each has a file of its own, and the last rename wins.
    temporary = path.with_name(
        f".{uuid.uuid4().hex}.tmp"
    )  # without the name, which may be as long as names can be
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed while they wrote into a folder have left; nobody may write there now."""
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink(missing_ok=True)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Replace `path` by `data` (text as UTF-8), as `open_atomic` does; raises SaveError."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    with writing(path, len(content)), open_atomic(path) as file:
        file.write(content)


def _reason(error: OSError) -> str:
    return error.strerror or explain(error)


def _free_space(path: Path) -> str:
    """What is free where a file should lie, in words."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{format_size(shutil.disk_usage(folder).free)} are free"
