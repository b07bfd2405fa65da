"""tools/fetch.py: a download gets whole or has no name, whatever the server does."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.downloads import Server, read_tree, run, run_fetch
from tests.support.paths import ROOT as REPOSITORY
from utils.download import fetching


def test_a_later_run_continues_the_partial_file(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = bytes(range(256)) * 8
    (tmp_path / "out.part").write_bytes(server.files["/f"][:1000])
    assert run_fetch(tmp_path, f"{server.url}/f", "--output", "out", "--size", "2048").returncode == 0
    assert server.requests == [("/f", "bytes=1000-")]
    assert read_tree(tmp_path) == {"out": server.files["/f"]}


def test_a_whole_partial_file_is_accepted_after_its_checks(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = b"content"
    (tmp_path / "out.part").write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert run_fetch(tmp_path, f"{server.url}/f", "--output", "out", "--sha256", sha256).returncode == 0
    assert read_tree(tmp_path) == {"out": b"content"}


def test_a_file_that_another_process_fetches_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = b"content"
    part = tmp_path / "out.part"
    command = [sys.executable, "-m", "tools.fetch", f"{server.url}/f", "--output", str(tmp_path / "out")]
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "waiting for another process that fetches out\n"
        file.write(b"content")
        file.flush()
        part.rename(tmp_path / "out")
    assert waiting.communicate()[1] == ""
    assert (waiting.returncode, server.requests) == (0, [])
    assert read_tree(tmp_path) == {"out": b"content"}


@pytest.mark.parametrize("stale", [b"other", b"much longer than the file"])
def test_a_partial_file_of_something_else_is_thrown_away(
    server: Server, tmp_path: Path, stale: bytes
) -> None:
    server.files["/f"] = b"the content"
    (tmp_path / "out.part").write_bytes(stale)
    md5 = hashlib.md5(b"the content").hexdigest()
    result = run_fetch(tmp_path, f"{server.url}/f", "--output", "out", "--md5", md5)
    assert result.returncode == 0, result.stderr
    assert server.requests == [("/f", f"bytes={len(stale)}-"), ("/f", None)]
    assert read_tree(tmp_path) == {"out": b"the content"}


def test_a_server_without_range_support_sends_the_file_from_its_start(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = b"0123456789" * 10
    server.ignores_range = True
    server.cut_after["/f"] = 30
    assert run_fetch(tmp_path, f"{server.url}/f", "--output", "out").returncode == 0
    assert server.requests == [("/f", None), ("/f", "bytes=30-")]
    assert read_tree(tmp_path) == {"out": server.files["/f"]}


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = b"content"
    server.busy.add("/f")
    assert run_fetch(tmp_path, f"{server.url}/gone", f"{server.url}/f", "--output", "out").returncode == 0
    assert [path for path, _ in server.requests] == ["/gone", "/f", "/f"]


def test_failure_names_every_url_with_its_reason(server: Server, tmp_path: Path) -> None:
    server.files["/short"] = b"12345"
    urls = [f"{server.url}/gone", f"{server.url}/short"]
    result = run_fetch(tmp_path, *urls, "--output", "out", "--size", "6")
    assert result.returncode == 1
    assert f"{urls[0]}: HTTP 404" in result.stderr
    assert f"{urls[1]}: expected 6 bytes, found 5" in result.stderr
    assert read_tree(tmp_path) == {}


def test_a_file_already_there_is_checked_and_never_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    good, bad = hashlib.md5(b"mine").hexdigest(), "0" * 32
    assert run_fetch(tmp_path, f"{server.url}/f", "--output", "out", "--md5", good).returncode == 0
    result = run_fetch(tmp_path, f"{server.url}/f", "--output", "out", "--md5", bad)
    assert result.returncode == 1
    assert f"expected md5 {bad}, found {good}" in result.stderr
    assert server.requests == []
    assert read_tree(tmp_path) == {"out": b"mine"}


def test_a_server_that_falls_silent_is_left_and_asked_for_the_rest(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/f"] = bytes(range(256)) * 8
    server.stalls.add("/f")
    monkeypatch.setattr(fetching, "TIMEOUT_SECONDS", 1)
    monkeypatch.setenv("FETCH_BACKOFF_SECONDS", "0")
    fetching.fetch([f"{server.url}/f"], tmp_path / "out", size=2048)
    assert (server.requests[0], server.requests[-1]) == (("/f", None), ("/f", "bytes=1024-"))
    assert read_tree(tmp_path) == {"out": server.files["/f"]}


@pytest.mark.parametrize("status", [500, 503])
def test_an_ailing_server_is_asked_four_times_ever_later_and_then_the_next_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", waits.append)
    monkeypatch.setenv("FETCH_BACKOFF_SECONDS", "3")
    server.failing["/ill"] = status
    server.files["/f"] = b"content"
    fetching.fetch([f"{server.url}/ill", f"{server.url}/f"], tmp_path / "out")
    assert [path for path, _ in server.requests] == ["/ill"] * 4 + ["/f"]
    assert waits == [3, 6, 12]
    assert read_tree(tmp_path) == {"out": b"content"}


def test_a_download_that_never_gets_whole_never_has_the_files_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/f"] = b"0123456789" * 10
    server.cut_after["/f"] = 30
    server.failing["/f2"] = 500
    monkeypatch.setenv("FETCH_BACKOFF_SECONDS", "0")
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    with pytest.raises(fetching.FetchError, match=r"connection cut after 30 of 100 bytes\n.*HTTP 500"):
        fetching.fetch([f"{server.url}/f", f"{server.url}/f2"], tmp_path / "out", size=100)
    assert read_tree(tmp_path) == {"out.part": server.files["/f"][:30]}
    fetching.fetch([f"{server.url}/f"], tmp_path / "out", size=100)
    assert read_tree(tmp_path) == {"out": server.files["/f"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ftp://host/f",), "found 'ftp://host/f', allowed are http://"),
        (("http://127.0.0.1/f", "--md5", "abc"), "md5: found 'abc', expected 32 hexadecimal digits"),
    ],
)
def test_malformed_arguments_are_named(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run_fetch(tmp_path, *arguments, "--output", "out")
    assert result.returncode == 2
    assert message in result.stderr


def test_a_malformed_backoff_is_named(tmp_path: Path) -> None:
    script = REPOSITORY / "tools" / "fetch.py"
    command = (sys.executable, script, "http://127.0.0.1/f", "--output", "out")
    result = run(*command, cwd=tmp_path, FETCH_BACKOFF_SECONDS="soon")
    assert result.returncode == 2
    assert "FETCH_BACKOFF_SECONDS: found 'soon'" in result.stderr
