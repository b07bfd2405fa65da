"""Files of a split: folders listed, lists read, images and masks paired, and what is said of files that do not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from utils.errors import DataError
from utils.files import require_regular

SPLITS = ("train", "val")

_LINE_END = re.compile(r"\r\n|\r|\n")
"""What ends a line of a list. Not all that str.splitlines takes for one: names may hold the others."""
MAX_LEFT_OUT = 5
"""Names of files that are told to be left out."""
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")


def check_split(split: str) -> None:
    """ValueError unless `split` is 'train' or 'val'."""
    if split not in SPLITS:
        raise ValueError(f"split: found {split!r}; allowed are {', '.join(SPLITS)}")


def tell(error: OSError | ValueError, problems: list[str] | None) -> None:
    """Raise an error of a data set's layout, or only add it to `problems` where the caller collects them."""
    if problems is None:
        raise error
    problems.append(str(error))


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path below `folder` is hidden, or lies in a hidden folder there."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def list_files(
    folder: Path, suffixes: Collection[str], expected: str, problems: list[str] | None = None
) -> dict[str, Path]:
    """Stem -> path of the files in `folder` with one of the (lower-case) suffixes, sorted.

    Hidden files are skipped, and so are folders, which are added to `problems`. `expected` says the layout and what to
    do; errors end with it.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: two files share a stem, or a name is not UTF-8; with `problems`, added there and left out.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are enough, and much faster for large folders
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder}: no such folder. {expected}") from None
    found: dict[str, Path] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if name.startswith("."):
            continue
        if suffix.lower() not in suffixes:
            if problems is not None and (folder / name).is_dir():
                problems.append(_describe_subfolder(folder / name))
            continue
        if not _is_utf8(name):
            # Image ids are written into text files of a run.
            tell(
                DataError(f"{folder}: the file name {os.fsencode(name)!r} is not UTF-8; rename the file"),
                problems,
            )
        elif _LINE_END.search(name):
            tell(
                DataError(f"{folder}: the file name {name!r} holds the end of a line; rename the file"),
                problems,
            )
        elif stem in found:
            shared = f"{found[stem].name} and {name} share the image id {stem!r}"
            tell(DataError(f"{folder}: {shared}; remove one"), problems)
        else:
            found[stem] = folder / name
    return found


def describe_left_out(folder: Path, suffixes: Collection[str], what: str) -> tuple[str, ...]:
    """Lines about what in `folder` has none of the (lower-case) suffixes: one a folder, and one of all files.

    Hidden files and those that systems leave there are not worth a word. what: 'images', or what else is looked for.
    """
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if not entry.name.startswith(".")
        and entry.name.lower() not in _OF_SYSTEMS
        and os.path.splitext(entry.name)[1].lower() not in suffixes  # noqa: PTH122
    )
    # Not an entry's own is_dir, which raises where links lead in a circle.
    subfolders = [folder / name for name in names if (folder / name).is_dir()]
    told = tuple(map(_describe_subfolder, subfolders))
    names = [name for name in names if folder / name not in subfolders]
    if not names:
        return told
    more = f" and {len(names) - MAX_LEFT_OUT} more" if len(names) > MAX_LEFT_OUT else ""
    return (
        *told,
        f"{folder}: left out, as {what} are {', '.join(sorted(suffixes))} in any case: "
        f"{', '.join(map(ascii, names[:MAX_LEFT_OUT]))}{more}",
    )


def _describe_subfolder(path: Path) -> str:
    return f"{path}: is a folder, in which nothing is looked for; move its files up"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not, as Python keeps them
        return False
    return True


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file, a byte order mark left out; raises FileNotFoundError, or DataError naming it."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a text file")
    try:
        require_regular(path)
        lines = _LINE_END.split(path.read_text(encoding="utf-8-sig"))
        return lines[:-1] if lines[-1] == "" else lines
    except NotADirectoryError as error:  # below a file
        raise FileNotFoundError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error


def pair_samples(
    ids: Iterable[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    image_pattern: Path,
    mask_pattern: Path,
    expected: str,
    problems: list[str] | None = None,
) -> dict[str, tuple[Path, Path]]:
    """Image id -> (image, mask), in the order of `ids`.

    The patterns name a file for the errors, with ID in the place of the image id.

    Raises:
        FileNotFoundError: no ids at all, or some without an image or a mask; with `problems`, every one of these
            is added there and left out.
    """
    ids = list(ids)
    if not ids:
        raise FileNotFoundError(
            f"{image_pattern.parent}: the split is empty, no {image_pattern.name}. {expected}"
        )
    for files, pattern, what in ((images, image_pattern, "image"), (masks, mask_pattern, "mask")):
        missing = [
            pattern.with_name(pattern.name.replace("ID", image_id, 1))
            for image_id in ids
            if image_id not in files
        ]
        beside = _names_by_stem(pattern.parent) if missing else {}
        lines = [f"{path}: this {what} is missing{_describe_beside(path, beside)}" for path in missing]
        if missing and problems is None:
            raise FileNotFoundError(
                f"{lines[0]} ({len(missing)} of {len(ids)} samples have none). {expected}"
            )
        if problems is not None:
            problems += lines
    return {i: (images[i], masks[i]) for i in ids if i in images and i in masks}


def _names_by_stem(folder: Path) -> dict[str, str]:
    return {path.stem: path.name for path in folder.iterdir()} if folder.is_dir() else {}


def _describe_beside(path: Path, names: Mapping[str, str]) -> str:
    """What is said of a file of another format that lies where one is missing."""
    name = names.get(path.stem, path.name)
    if Path(name).suffix.lower() == path.suffix:
        return ""
    return f", but {name} lies there, in a format that is not read: save it as {path.suffix[1:].upper()}"
