"""Files that are either whole or not there, and what is said where they cannot be written."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from utils.errors import RunError
from utils.units import format_size


class SaveError(RunError, OSError):
    """A file cannot be written; what was saved before is intact."""


@contextmanager
def writing(path: Path, num_bytes: int) -> Iterator[None]:
    """Raise SaveError naming path and size where the block cannot write `num_bytes` bytes, or so, to `path`."""
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{path}: cannot be written ({error.strerror or error}); it needs about {format_size(num_bytes)}, "
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
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Replace `path` by `data` (text as UTF-8), as `open_atomic` does; raises SaveError."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    with writing(path, len(content)), open_atomic(path) as file:
        file.write(content)


def _free_space(path: Path) -> str:
    """What is free where a file should lie, in words."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{format_size(shutil.disk_usage(folder).free)} are free"
