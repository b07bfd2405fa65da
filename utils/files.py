"""Files that are either whole or not there."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


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
    """Replace `path` by `data` (text as UTF-8), as `open_atomic` does."""
    with open_atomic(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)
