"""Files that an annotation names: where they may lie, how they are found, and the id of an image."""

import os
import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path, PureWindowsPath

from tools.prepare.checked import brief, check_printable

_MAX_NAME_BYTES = 200
"""A file system takes 255 for a file name; a suffix and the name of a temporary file come on top."""


def find_below(folder: Path, name: str, root: Path, allow_outside: bool) -> Path:
    """The file of a cleaned `name` in `folder`; raises ValueError where it lies outside `root` and may not.

    `folder` is `root` or lies below it. Links are not followed: a link in `root` may lead anywhere.
    """
    path = Path(posixpath.normpath((folder / name).as_posix()))
    is_outside = PureWindowsPath(name).drive != "" or not path.is_relative_to(
        posixpath.normpath(root.as_posix())
    )
    if is_outside and not allow_outside:
        raise ValueError(
            f"the file {brief(name)} lies outside {root}; allowed are files below it, or any with --allow-outside"
        )
    return path


def make_id(path: Path) -> str:
    """The image id of a file in a folder: its path without suffix, folders joined by '_'.

    Raises ValueError for an id that can be no file's name, or only that of a hidden one.
    """
    image_id = "_".join(part for part in path.with_suffix("").parts if part not in (path.anchor, ".."))
    check_printable(image_id, "a file name")
    if image_id.startswith("."):
        raise ValueError(f"the file {brief(str(path))} is hidden; rename it, without a point at its start")
    if len(image_id.encode()) > _MAX_NAME_BYTES:
        raise ValueError(
            f"the name {brief(str(path))} has {len(image_id.encode())} bytes with its folders; allowed are "
            f"{_MAX_NAME_BYTES}"
        )
    return image_id


def list_below(folder: Path, suffixes: Collection[str], left_out: Collection[Path] = ()) -> Iterator[Path]:
    """The files in `folder` and below with one of the (lower-case) suffixes, sorted; links to folders are followed.

    Hidden files and folders are passed over, and so are folders that are `left_out` (resolved).
    """
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        inner = [(name, os.path.realpath(os.path.join(parent, name))) for name in sorted(folders)]  # noqa: PTH118
        folders[:] = [
            name for name, real in inner if name[0] != "." and real not in seen and Path(real) not in left_out
        ]
        seen.update(real for _, real in inner)
        for name in sorted(names):
            if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122
                yield Path(parent, name)
