"""Archives that are checked before anything is unpacked: tar and zip. Standard library only."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath


def check_archive(path: Path) -> None:
    """Read the archive's index (and a zip's checksums); ValueError if it is damaged or a member is unsafe."""
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                _check_tar_members(tar)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                _check_zip_members(zipped)
                damaged = zipped.testzip()
                if damaged is not None:
                    raise ValueError(f"damaged archive: wrong checksum of {damaged}")
        else:
            raise ValueError("neither a tar nor a zip archive (cut short, or an error page?)")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"damaged archive: {error}") from error


def unpack(archive: Path, destination: Path, root: str) -> None:
    """Make the archive's folder `root` the folder `destination`, replacing files of the same name there.

    Members go to a sibling folder ('.unpacking' appended) first, so an interruption never leaves a half file
    under `destination`. An archive with only files at its top is taken as `root` itself.

    Raises:
        ValueError: a damaged archive, an unsafe member, or no folder `root` in it.
    """
    destination = destination.resolve()  # the sibling must lie on the file system of a linked folder's target
    staging = destination.with_name(destination.name + ".unpacking")
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    try:
        extract(archive, staging)
        _merge(_find_root(archive, staging, root), destination)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive}: damaged archive: {error}. Remove it, run again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_name(name: str) -> None:
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise ValueError(f"unsafe archive: member {name!r} would land outside the target folder")


def _check_tar_members(tar: tarfile.TarFile) -> None:
    for member in tar:
        _check_name(member.name)
        if not (member.isfile() or member.isdir()):
            raise ValueError(
                f"unsafe archive: member {member.name!r} is a link or a device, not a file or folder"
            )


def _check_zip_members(zipped: zipfile.ZipFile) -> None:
    for member in zipped.infolist():
        _check_name(member.filename)
        # The upper half holds the Unix mode; archives made elsewhere leave it 0.
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(
                f"unsafe archive: member {member.filename!r} is a link or a device, not a file or folder"
            )
        if member.flag_bits & 1:
            raise ValueError(f"unreadable archive: member {member.filename!r} is encrypted")


def extract(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder; ValueError where a member would land outside it or is no file or folder."""
    if not tarfile.is_tarfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            _check_zip_members(zipped)
            zipped.extractall(folder)
        return
    with tarfile.open(archive) as tar:
        _check_tar_members(tar)
        if hasattr(tarfile, "data_filter"):  # Python 3.10.12, 3.11.4 and later
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)


def _find_root(archive: Path, staging: Path, root: str) -> Path:
    if (staging / root).is_dir():
        return staging / root
    entries = sorted(entry for entry in staging.iterdir() if entry.name != "__MACOSX")
    if entries and all(entry.is_file() for entry in entries):
        return staging
    raise ValueError(
        f"{archive}: expected a folder {root!r} in it, found {_abbreviate(e.name for e in entries)}"
    )


def _abbreviate(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "nothing"


def _merge(source: Path, target: Path) -> None:
    """Move `source` to `target`; where both are folders, move what is in it."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            _merge(child, target / child.name)
    else:
        source.replace(target)
