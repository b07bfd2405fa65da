"""One file from a list of mirrors: continued where it was cut, checked before it takes its name.

Standard library only. The environment's `FETCH_BACKOFF_SECONDS` (default 2) is the wait before the first retry; it
doubles with every further one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from utils.download.archives import check_archive

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
    Where another process fetches it, this one waits, and takes its file or goes on with what it has left.

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

    def is_there() -> bool:
        if not output.exists():
            return False
        try:
            _verify(output, output.name, size, expected, archive)
        except ValueError as error:
            raise ValueError(
                f"{output} is there but is not the file wanted: {error}. Remove it, run again"
            ) from error
        return True

    if is_there():
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    with _alone(output.with_name(output.name + ".part"), output.name) as part:
        if is_there():  # another process has brought it meanwhile
            return
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


@contextmanager
def _alone(part: Path, name: str) -> Iterator[Path]:
    """Keep other processes from a partial file, which is made if need be; wait where one has it.

    It must stay the same file until it is renamed: the lock is the file's, not the name's.
    """
    while True:
        with part.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # A file system without locks raises another error; there nobody is waited for.
                if error.errno == errno.EWOULDBLOCK:
                    print(f"waiting for another process that fetches {name}", file=sys.stderr, flush=True)
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_open_at(part, file.fileno()):  # renamed or removed by the one that had it
                continue
            try:
                yield part
            finally:
                if _is_open_at(part, file.fileno()) and not part.stat().st_size:
                    part.unlink()
            return


def _is_open_at(path: Path, descriptor: int) -> bool:
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


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
        resumed = part.stat().st_size > 0
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
            os.truncate(part, 0)
            # A continued download may have joined two different files; a fresh one that is wrong stays wrong.
            if not resumed:
                break
    return reason


def _receive(url: str, part: Path, name: str) -> None:
    """One request for what `part` still lacks; ConnectionError if the bytes end early."""
    start = part.stat().st_size
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
        os.truncate(part, 0)
        raise ConnectionError("the partial download is longer than the file") from error
    with response:
        if response.status == 206:
            content_range = response.headers.get("Content-Range", "")
            if not content_range.startswith(f"bytes {start}-"):
                os.truncate(part, 0)
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
