"""One run in a folder at a time."""

import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from utils.errors import RunError
from utils.files import writing

LOCK = ".lock"
"""A run's own."""


class RunLockedError(RunError, ValueError):
    """Another process runs in the folder."""


@contextmanager
def lock(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold a lock in a folder, a file that names host and process, until the block ends.

    A lock whose process has died on this machine is stale and taken over: the kernel gives up what it held. One that
    another machine has left cannot be told from a living one. A free lock is empty.
    Raises RunLockedError naming the holder while it lives, SaveError where the folder cannot be written.
    """
    path = folder / name
    with writing(path, 100):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            # Not flock: data workers would inherit it, and they outlive a killed process by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise RunLockedError(
                    f"{path}: cannot be locked ({error.strerror}): the file system of {folder} has no POSIX locks; "
                    "choose an output_dir on one that has"
                ) from error
            is_free = False
        file.seek(0)
        holder = _parse(file.read())
        host = platform.node()
        if not is_free or holder.get("host", host) != host:
            raise RunLockedError(
                f"{folder}: a run of this name is under way (process {holder.get('pid', 'unknown')} on "
                f"{holder.get('host', 'this machine')} since {holder.get('since', 'a moment ago')}); wait for it or "
                f"choose another --log. If that process is gone for certain, delete {path}"
            )
        with writing(path, 100):
            file.truncate(0)
            json.dump(
                {"host": host, "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}, file
            )
            file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def find_holder(folder: Path, name: str = LOCK) -> str:
    """Return which process holds a lock in a folder, in words; '' where none does, or it has died on this machine."""
    path = folder / name
    try:
        holder = _parse(path.read_text(encoding="utf-8"))
        if not holder:
            return ""
        told = f"process {holder.get('pid')} on {holder.get('host')}"
        if holder.get("host") != platform.node():
            return f"{told}; if it is gone for certain, delete {path}"
        os.kill(int(holder.get("pid", 0)), 0)
    except (ProcessLookupError, FileNotFoundError, NotADirectoryError):
        return ""
    except PermissionError:  # it lives, and is another user's
        pass
    return told


def _parse(text: str) -> dict[str, str]:
    """The holder that a lock names; empty where its process was killed before it wrote."""
    try:
        holder: dict[str, str] = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return holder
