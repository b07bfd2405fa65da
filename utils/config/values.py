"""Values of a config that no type of Python describes: paths, names of folders, intervals."""

import os
import re
from pathlib import Path


def check_path(path: Path) -> Path:
    """Return a path with `~` expanded; raises ValueError for what no file system takes."""
    if any(not c.isprintable() and c not in "\u200c\u200d" for c in str(path)):
        raise ValueError("expected a path without control characters, in UTF-8")
    if any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(path)) > 4000:
        raise ValueError("expected a path whose names have at most 255 bytes each, and 4000 together")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser fails for a user who is not there


def check_folder_name(name: str) -> str:
    """Return the name of one folder, '' for none; raises ValueError."""
    if name.startswith(".") or "/" in name or "\\" in name:
        raise ValueError("expected one folder name that starts with no dot and holds no slash")
    check_path(Path(name))
    return name


def check_interval(value: int | str) -> int | str:
    """Return a number of iterations, or minutes as a text such as '10m'; raises ValueError."""
    if isinstance(value, int):
        is_interval = value >= 1
    else:
        is_interval = re.fullmatch(r"\d{1,6}(\.\d+)?m", value) is not None and float(value[:-1]) > 0
    if not is_interval:
        raise ValueError(
            "expected a number of iterations, such as 500, or of minutes, such as 10m, above 0 and below a million"
        )
    return value
