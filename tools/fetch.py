"""Fetch one file from a list of mirrors, check it, and unpack it if it is an archive.

    python tools/fetch.py URL [URL ...] --output FILE [--size N] [--md5 HEX] [--sha1 HEX] [--sha256 HEX]
                          [--unpack-to FOLDER [--root NAME] [--keep-archive]]

Standard library only: it runs before anything is installed. The environment's `FETCH_BACKOFF_SECONDS`
(default 2) is the wait before the first retry; it doubles with every further one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ATTEMPTS = 4
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 18
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
ALGORITHMS = ("md5", "sha1", "sha256")


class UsageError(ValueError):
    """A malformed URL, digest or FETCH_BACKOFF_SECONDS."""


class FetchError(OSError):
    """No mirror gave the file; the message names each URL and what was wrong with it."""


def fetch(
    urls: Sequence[str],
    output: Path,
    *,
    size: int | None = None,
    digests: Mapping[str, str] | None = None,
    archive: bool = False,
) -> None:
    """Bring the file at the first URL that works to `output`; prints its SHA-256.

    The bytes gather in `output` + '.part', which a later call continues (HTTP Range), and take the real name
    only when every check has passed. An `output` that is already there is checked; no request is made then.

    Args:
        size: expected size in bytes.
        digests: algorithm ('md5', 'sha1', 'sha256') to expected hexadecimal digest; empty: not checked.
        archive: also require a readable tar or zip with safe members (`check_archive`).

    Raises:
        UsageError: a malformed URL, digest or FETCH_BACKOFF_SECONDS.
        ValueError: an `output` is there that fails a check.
        FetchError: every URL failed.
    """
    expected = _parse_digests(digests or {})
    backoff_seconds = _backoff_seconds()
    for url in urls:
        if not url.startswith(("http://", "https://", "file://")):
            raise UsageError(f"URL: found {url!r}, allowed are http://, https:// and file:// URLs")

    if output.exists():
        try:
            _verify(output, output.name, size, expected, archive)
        except ValueError as error:
            raise ValueError(
                f"{output} is there but is not the file wanted: {error}. Remove it, run again"
            ) from error
        return

    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    failures = []
    for url in urls:
        failure = _fetch_from(url, part, output.name, size, expected, archive, backoff_seconds)
        if failure is None:
            part.replace(output)
            return
        failures.append(f"  {url}: {failure}")
    raise FetchError(
        "\n".join([f"{output.name}: no URL gave the file", *failures])
        + f"\nGive another URL, or put the file at {output} yourself, and run again"
    )


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
        _extract(archive, staging)
        _merge(_find_root(archive, staging, root), destination)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive}: damaged archive: {error}. Remove it, run again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch_from(
    url: str,
    part: Path,
    name: str,
    size: int | None,
    digests: Mapping[str, str],
    archive: bool,
    backoff_seconds: float,
) -> str | None:
    """Bring one URL's verified bytes to `part`; the reason if that fails."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(backoff_seconds * 2 ** (attempt - 1))
        resumed = part.exists()
        try:
            _receive(url, part, name)
            _verify(part, name, size, digests, archive)
            return None
        except HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code not in TRANSIENT_STATUS:
                break
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        except ValueError as error:
            reason = str(error)
            part.unlink(missing_ok=True)
            # A continued download may have joined two different files; a fresh one that is wrong stays wrong.
            if not resumed:
                break
    return reason


def _receive(url: str, part: Path, name: str) -> None:
    """One request for what `part` still lacks; ConnectionError if the bytes end early."""
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "dataset-download"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return
        part.unlink()
        raise ConnectionError("the partial download is longer than the file") from error
    with response:
        if response.status == 206:
            content_range = response.headers.get("Content-Range", "")
            if not content_range.startswith(f"bytes {start}-"):
                part.unlink(missing_ok=True)
                raise ConnectionError(f"asked for bytes from {start}, got {content_range!r}")
        else:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        progress = _Progress(name, url, total)
        received = start
        with part.open("ab" if start else "wb") as file:
            # What is there, not a whole chunk: a server that falls silent would take the rest along.
            while chunk := response.read1(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                progress.show(received)
        progress.close()
    if total is not None and received != total:
        raise ConnectionError(f"connection cut after {received} of {total} bytes")


class _Progress:
    """Percent on a terminal's stderr; a single line where stderr is no terminal."""

    def __init__(self, name: str, url: str, total: int | None) -> None:
        self.name, self.total = name, total
        self.terminal = sys.stderr.isatty()
        self.shown = ""
        print(f"fetching {name} from {url}", file=sys.stderr, flush=True)

    def show(self, received: int) -> None:
        text = f"{received * 100 // self.total} %" if self.total else f"{received >> 20} MiB"
        if self.terminal and text != self.shown:
            print(f"\r{self.name}: {text}", end="", file=sys.stderr, flush=True)
            self.shown = text

    def close(self) -> None:
        if self.shown:
            print(file=sys.stderr)


def _verify(path: Path, name: str, size: int | None, digests: Mapping[str, str], archive: bool) -> None:
    """Check size, digests, archive, in this order; print the SHA-256; ValueError names expected and found."""
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        raise ValueError(f"expected {size} bytes, found {found_size}")
    hashes = {key: hashlib.new(key, usedforsecurity=False) for key in {*digests, "sha256"}}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            for digest in hashes.values():
                digest.update(chunk)
    for key, expected in digests.items():
        found = hashes[key].hexdigest()
        if found != expected:
            raise ValueError(f"expected {key} {expected}, found {found}")
    if archive:
        check_archive(path)
    print(f"{name}: sha256 {hashes['sha256'].hexdigest()}", flush=True)


def _parse_digests(digests: Mapping[str, str]) -> dict[str, str]:
    """Lower-case digests without the empty ones; UsageError for an unknown algorithm or malformed digest."""
    parsed = {}
    for key, text in digests.items():
        if key not in ALGORITHMS:
            raise UsageError(f"digest: found {key!r}, allowed are {', '.join(ALGORITHMS)}")
        digest = text.strip().lower()
        num_digits = 2 * hashlib.new(key, usedforsecurity=False).digest_size
        if digest and (len(digest) != num_digits or set(digest) - set("0123456789abcdef")):
            raise UsageError(f"{key}: found {text!r}, expected {num_digits} hexadecimal digits")
        if digest:
            parsed[key] = digest
    return parsed


def _backoff_seconds() -> float:
    text = os.environ.get("FETCH_BACKOFF_SECONDS", "2")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"FETCH_BACKOFF_SECONDS: found {text!r}, expected a number of seconds, 0 or more")
    return seconds


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


def _extract(archive: Path, folder: Path) -> None:
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


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Fetch one file from the first mirror that works, and check it."
    )
    parser.add_argument("urls", nargs="+", metavar="URL", help="mirrors of the same file, tried in order")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the file goes")
    parser.add_argument("--size", type=int, metavar="N", help="expected size in bytes")
    for key in ALGORITHMS:
        parser.add_argument(
            f"--{key}", default="", metavar="HEX", help=f"expected {key} (empty: not checked)"
        )
    parser.add_argument(
        "--unpack-to", type=Path, metavar="FOLDER", help="unpack the archive into this folder"
    )
    parser.add_argument(
        "--root", default=".", metavar="NAME", help="the archive's folder that becomes FOLDER"
    )
    parser.add_argument("--keep-archive", action="store_true", help="keep FILE after it is unpacked")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = _parse_arguments(argv)
    digests = {key: getattr(args, key) for key in ALGORITHMS}
    try:
        fetch(args.urls, args.output, size=args.size, digests=digests, archive=args.unpack_to is not None)
        if args.unpack_to is not None:
            unpack(args.output, args.unpack_to, args.root)
            if not args.keep_archive:
                args.output.unlink()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
