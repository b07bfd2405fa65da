"""What ends a run that is under way and can be mended by its user, and how errors are told."""

import errno
from typing import ClassVar


class RunError(Exception):
    """Told in one message, with exit code 2; every other error of a run under way comes with its traceback."""

    met_by_all: ClassVar[bool] = True
    """Whether all ranks raise it alike: then one of them tells it."""


class DataError(RunError, ValueError):
    """A file of data is wrong: the message names it, what was found, what is allowed and what to do."""

    met_by_all = False


_REASONS = {
    errno.ENOENT: ("no such file or folder", "correct the path, or mend the link"),
    errno.EACCES: ("access is not allowed", "give rights to it and to the folders above it"),
    errno.EPERM: ("access is not allowed", "give rights to it and to the folders above it"),
    errno.ENOTDIR: ("a part of this path is a file", "give a path through folders"),
    errno.EISDIR: ("is a folder", "give a file"),
    errno.EEXIST: ("exists already", "move it away, or give another path"),
    errno.ELOOP: ("its links lead in a circle", "mend the link"),
    errno.ENAMETOOLONG: ("the name is too long", "shorten it; file systems take 255 bytes a name"),
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the quota is used up", "make room"),
    errno.EROFS: ("the file system is read-only", "give a path on another"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
    errno.EIO: ("the disk does not answer", "check the disk"),
}
"""Reason and remedy of what the system says; the one place where its numbers become words."""


def explain(error: Exception) -> str:
    """What a user is told of an error: of one of the system its path, reason and remedy, of others their message.

    Control characters, which a terminal would obey, are written out.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        reason, remedy = _REASONS.get(error.errno, (error.strerror or type(error).__name__, "check the path"))
        where = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        text = f"{where}: {reason}; {remedy}" if where else f"{reason}; {remedy}"
    return "".join(c if c.isprintable() or c in "\n\u200c\u200d" else ascii(c)[1:-1] for c in text)
