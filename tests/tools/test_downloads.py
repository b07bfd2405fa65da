"""The download scripts, run as commands against a local server that can fail in the ways real ones do."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.paths import ROOT as REPOSITORY
from tools import fetch as fetching

VOC_TAR, AUG_ZIP, LIST_ZIP = "VOCtrainval_11-May-2012.tar", "SegmentationClassAug.zip", "list.zip"
ADE_ZIP = "ADEChallengeData2016.zip"

VOC_FILES = {
    "ImageSets/Segmentation/train.txt": b"a\n",
    "ImageSets/Segmentation/val.txt": b"b\n",
    **{f"JPEGImages/{name}.jpg": f"image {name}".encode() * 50 for name in "abc"},
    **{f"SegmentationClass/{name}.png": f"mask {name}".encode() for name in "ab"},
}
AUG_FILES = {f"{name}.png": f"augmented mask {name}".encode() for name in "abc"}
LIST_FILES = {
    "train_aug.txt": b"/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    b"/JPEGImages/c.jpg /SegmentationClassAug/c.png\n"
}
ADE_FILES = {
    f"{kind}/{split}/ADE_{split}_{number}.{suffix}": f"{kind} {split} {number}".encode() * 40
    for kind, suffix in (("images", "jpg"), ("annotations", "png"))
    for split, number in (("training", 1), ("training", 2), ("validation", 1))
}


def make_tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def under(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def read_tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass
class Server:
    """What the server holds, how it misbehaves, and what it was asked: (path, Range header) in order."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)  # path to body bytes sent before the first cut
    busy: set[str] = field(default_factory=set)  # paths answered with 503 the first time
    failing: dict[str, int] = field(
        default_factory=dict
    )  # path to the status that it is always answered with
    stalls: set[str] = field(default_factory=set)  # paths whose first body ends in silence half way
    released: threading.Event = field(default_factory=threading.Event)  # ends the silence
    ignores_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.requests.append((self.path, asked))
            if self.path in state.busy:
                state.busy.remove(self.path)
                return self.send_error(503)
            if self.path in state.failing:
                return self.send_error(state.failing[self.path])
            if self.path not in state.files:
                return self.send_error(404)
            content = state.files[self.path]
            start = 0 if asked is None or state.ignores_range else int(asked[len("bytes=") : -1])
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return None
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.path in state.stalls:
                state.stalls.remove(self.path)
                self.wfile.write(content[start:][: len(content) // 2])
                state.released.wait(60)
                return None
            self.wfile.write(content[start:][: state.cut_after.pop(self.path, None)])
            return None

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(url=f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.released.set()
        http.shutdown()
        thread.join()


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "FETCH_BACKOFF_SECONDS": "0",
        "no_proxy": "*",
        **environment,
    }
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )


def run_voc(server: Server, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    defaults = {"VOC_BASE_URL": f"{server.url}/voc/", "AUG_BASE_URL": f"{server.url}/aug"}
    if (tar := server.files.get(f"/voc/{VOC_TAR}")) is not None:
        defaults["VOC_MD5"] = hashlib.md5(tar).hexdigest()
    return run("bash", REPOSITORY / "download_voc.sh", "data", cwd=cwd, **{**defaults, **environment})


def run_ade(server: Server, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    sha1 = hashlib.sha1(make_zip(under("ADEChallengeData2016", ADE_FILES))).hexdigest()
    script = REPOSITORY / "download_ade20k.py"
    url = () if "--url" in options else ("--url", f"{server.url}/{ADE_ZIP}")
    return run(sys.executable, script, "--data-root", "data", "--sha1", sha1, *url, *options, cwd=cwd)


def run_fetch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, REPOSITORY / "tools" / "fetch.py", *arguments, cwd=cwd)


def serve_voc(server: Server) -> None:
    server.files[f"/voc/{VOC_TAR}"] = make_tar(under("VOCdevkit/VOC2012", VOC_FILES))
    server.files[f"/aug/{AUG_ZIP}"] = make_zip(
        {**under("SegmentationClassAug", AUG_FILES), "__MACOSX/._a.png": b"junk"}
    )
    server.files[f"/aug/{LIST_ZIP}"] = make_zip(under("list", LIST_FILES))


def serve_ade(server: Server) -> bytes:
    server.files[f"/{ADE_ZIP}"] = make_zip(under("ADEChallengeData2016", ADE_FILES))
    return server.files[f"/{ADE_ZIP}"]


EXPECTED_VOC = {**VOC_FILES, **under("SegmentationClassAug", AUG_FILES), **under("list", LIST_FILES)}


def test_voc_script_installs_exactly_the_three_archives_files(server: Server, tmp_path: Path) -> None:
    serve_voc(server)
    result = run_voc(server, tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_tree(tmp_path / "data") == under("VOCdevkit/VOC2012", EXPECTED_VOC)
    for content in server.files.values():
        assert hashlib.sha256(content).hexdigest() in result.stdout
    assert result.stderr.count("\n") == 3  # no terminal: one line a file


def test_voc_script_makes_no_request_when_the_set_is_complete(server: Server, tmp_path: Path) -> None:
    serve_voc(server)
    run_voc(server, tmp_path)
    server.requests.clear()
    result = run_voc(server, tmp_path)
    assert result.returncode == 0, result.stderr
    assert server.requests == []
    assert result.stdout.count("complete, nothing to do") == 3


def test_voc_script_restores_a_missing_and_an_empty_file_and_keeps_the_rest(
    server: Server, tmp_path: Path
) -> None:
    serve_voc(server)
    run_voc(server, tmp_path)
    voc = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    (voc / "JPEGImages" / "c.jpg").unlink()
    (voc / "SegmentationClassAug" / "b.png").write_bytes(b"")
    (voc / "mine.txt").write_bytes(b"mine")
    server.requests.clear()
    assert run_voc(server, tmp_path).returncode == 0
    assert [path for path, _ in server.requests] == [f"/voc/{VOC_TAR}", f"/aug/{AUG_ZIP}"]
    assert read_tree(voc) == {**EXPECTED_VOC, "mine.txt": b"mine"}


def test_voc_script_needs_no_list_archive_where_imagesets_has_bare_train_aug_ids(
    server: Server, tmp_path: Path
) -> None:
    serve_voc(server)
    own_list = tmp_path / "data/VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt"
    own_list.parent.mkdir(parents=True)
    own_list.write_bytes(b"a\r\nc")
    assert run_voc(server, tmp_path).returncode == 0
    assert [path for path, _ in server.requests] == [f"/voc/{VOC_TAR}", f"/aug/{AUG_ZIP}"]
    assert own_list.read_bytes() == b"a\r\nc"


def test_voc_script_asks_mirrors_in_order(server: Server, tmp_path: Path) -> None:
    serve_voc(server)
    mirrors = f"{server.url}/gone {server.url}/wrong/ {server.url}/aug {server.url}/unused"
    server.files[f"/wrong/{LIST_ZIP}"] = b"<html>this host has moved</html>"
    assert run_voc(server, tmp_path, AUG_BASE_URL=mirrors).returncode == 0
    asked = [path for path, _ in server.requests if path.endswith(LIST_ZIP)]
    assert asked == [f"/gone/{LIST_ZIP}", f"/wrong/{LIST_ZIP}", f"/aug/{LIST_ZIP}"]


def test_voc_script_refuses_a_tar_with_another_md5(server: Server, tmp_path: Path) -> None:
    serve_voc(server)
    found = hashlib.md5(server.files[f"/voc/{VOC_TAR}"]).hexdigest()
    result = run_voc(server, tmp_path, VOC_MD5="0" * 32)
    assert result.returncode == 1
    assert f"expected md5 {'0' * 32}, found {found}" in result.stderr
    assert read_tree(tmp_path / "data") == under("VOCdevkit/VOC2012/list", LIST_FILES)


def test_voc_script_checks_the_published_md5_by_default(server: Server, tmp_path: Path) -> None:
    serve_voc(server)
    env = {"VOC_BASE_URL": f"{server.url}/voc", "AUG_BASE_URL": f"{server.url}/aug"}
    result = run("bash", REPOSITORY / "download_voc.sh", "data", cwd=tmp_path, **env)
    assert result.returncode == 1
    assert "expected md5 6cd6e144f989b92b3379bac3b3de84fd" in result.stderr


def test_voc_script_reports_masks_that_the_archive_lacks(server: Server, tmp_path: Path) -> None:
    serve_voc(server)
    masks = {"a.png": b"a", "b.png": b"b"}
    server.files[f"/aug/{AUG_ZIP}"] = make_zip(under("SegmentationClassAug", masks))
    result = run_voc(server, tmp_path)
    assert result.returncode == 1
    assert (
        "incomplete after unpacking, it lacks data/VOCdevkit/VOC2012/SegmentationClassAug/c.png"
        in result.stderr
    )


def test_voc_script_checks_a_sha256_the_user_gives(server: Server, tmp_path: Path) -> None:
    serve_voc(server)
    result = run_voc(server, tmp_path, LIST_SHA256="1" * 64)
    assert result.returncode == 1
    assert f"expected sha256 {'1' * 64}" in result.stderr
    assert read_tree(tmp_path / "data") == {}


def test_ade_script_installs_exactly_the_archives_files_and_then_makes_no_request(
    server: Server, tmp_path: Path
) -> None:
    content = serve_ade(server)
    result = run_ade(server, tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_tree(tmp_path / "data") == under("ADEChallengeData2016", ADE_FILES)
    assert hashlib.sha256(content).hexdigest() in result.stdout
    assert "2 training and 1 validation" in result.stdout

    server.requests.clear()
    result = run_ade(server, tmp_path)
    assert result.returncode == 0
    assert server.requests == []
    assert "complete, nothing to do" in result.stdout


def test_ade_script_keeps_the_archive_on_request_and_reuses_it(server: Server, tmp_path: Path) -> None:
    content = serve_ade(server)
    run_ade(server, tmp_path, "--keep-archive")
    assert (tmp_path / "data" / ADE_ZIP).read_bytes() == content
    (tmp_path / "data/ADEChallengeData2016/annotations/training/ADE_training_2.png").unlink()
    assert run_ade(server, tmp_path, "--keep-archive").returncode == 0
    assert len(server.requests) == 1
    assert read_tree(tmp_path / "data" / "ADEChallengeData2016") == ADE_FILES


def test_ade_script_refuses_another_sha1_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    serve_ade(server)
    server.files[f"/{ADE_ZIP}"] += b"x"
    result = run_ade(server, tmp_path)
    found = hashlib.sha1(server.files[f"/{ADE_ZIP}"]).hexdigest()
    assert result.returncode == 1
    assert "expected sha1 " in result.stderr
    assert f"found {found}" in result.stderr
    assert list((tmp_path / "data").iterdir()) == []


def test_ade_script_tries_the_urls_in_order(server: Server, tmp_path: Path) -> None:
    serve_ade(server)
    urls = [f"{server.url}/gone.zip", f"{server.url}/{ADE_ZIP}", f"{server.url}/unused.zip"]
    result = run_ade(server, tmp_path, *(argument for url in urls for argument in ("--url", url)))
    assert result.returncode == 0, result.stderr
    assert server.requests == [("/gone.zip", None), (f"/{ADE_ZIP}", None)]


def test_an_interrupted_unpack_is_not_taken_for_a_complete_set(server: Server, tmp_path: Path) -> None:
    serve_ade(server)
    staging = tmp_path / "data" / "ADEChallengeData2016.unpacking" / "images" / "training"
    staging.mkdir(parents=True)
    (staging / "left_over.jpg").write_bytes(b"half")
    assert run_ade(server, tmp_path).returncode == 0
    assert read_tree(tmp_path / "data") == under("ADEChallengeData2016", ADE_FILES)


def test_a_cut_download_asks_for_the_rest_only(server: Server, tmp_path: Path) -> None:
    serve_ade(server)
    server.cut_after[f"/{ADE_ZIP}"] = 700
    assert run_ade(server, tmp_path).returncode == 0
    assert server.requests == [(f"/{ADE_ZIP}", None), (f"/{ADE_ZIP}", "bytes=700-")]
    assert read_tree(tmp_path / "data") == under("ADEChallengeData2016", ADE_FILES)


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


def tar_of(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("root/good.txt"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "root/good.txt"
        tar.addfile(member)
    return buffer.getvalue()


def zip_with_mode(mode: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        member = zipfile.ZipInfo("root/link")
        member.external_attr = mode << 16
        zipped.writestr(member, "/etc/hostname")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar_of("/absolute.txt"), "outside"),
        (tar_of("root/../../up.txt"), "outside"),
        (tar_of("root/link", tarfile.SYMTYPE), "link or a device"),
        (tar_of("root/link", tarfile.LNKTYPE), "link or a device"),
        (tar_of("root/pipe", tarfile.FIFOTYPE), "link or a device"),
        (tar_of("root/device", tarfile.CHRTYPE), "link or a device"),
        (make_zip({"root/good.txt": b"", "/absolute.txt": b"x"}), "outside"),
        (make_zip({"root/good.txt": b"", "../up.txt": b"x"}), "outside"),
        (make_zip({"root/good.txt": b"", "root\\..\\..\\up.txt": b"x"}), "outside"),
        (make_zip({"root/good.txt": b"", "C:/up.txt": b"x"}), "outside"),
        (tar_of("root/disk", tarfile.BLKTYPE), "link or a device"),
        (zip_with_mode(0o120777), "link or a device"),
        (zip_with_mode(0o020666), "link or a device"),
        (make_zip({"root/good.txt": b"sound"}).replace(b"sound", b"rot!!"), "wrong checksum"),
        (make_tar({"root/good.txt": b"sound" * 1000})[:2000], "damaged archive"),
        (make_zip({"root/good.txt": b"sound"})[:-30], "neither a tar nor a zip"),
    ],
)
def test_an_unsafe_or_damaged_archive_is_refused_before_anything_is_written(
    server: Server, tmp_path: Path, content: bytes, message: str
) -> None:
    server.files["/f"] = content
    here = tmp_path / "here"
    here.mkdir()
    result = run_fetch(here, f"{server.url}/f", "--output", "f", "--unpack-to", "target", "--root", "root")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.rglob("*")) == [here]


def test_an_archive_of_files_only_is_taken_as_the_folder_itself(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = make_zip({"train_aug.txt": b"a"})
    assert (
        run_fetch(
            tmp_path, f"{server.url}/f", "--output", "f", "--unpack-to", "list", "--root", "list"
        ).returncode
        == 0
    )
    assert read_tree(tmp_path) == {"list/train_aug.txt": b"a"}


def test_an_archive_without_the_expected_folder_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = make_zip({"other/a.txt": b"a"})
    result = run_fetch(tmp_path, f"{server.url}/f", "--output", "f", "--unpack-to", "list", "--root", "list")
    assert result.returncode == 1
    assert "expected a folder 'list' in it, found other" in result.stderr
    assert read_tree(tmp_path) == {"f": server.files["/f"]}


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


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        (
            ("bash", "download_voc.sh"),
            ("[data_root]", "VOC_BASE_URL", "AUG_BASE_URL", "VOC_MD5", "AUG_SHA256"),
        ),
        (
            (sys.executable, "download_ade20k.py"),
            ("--data-root", "--url", "--sha1", "--sha256", "--keep-archive"),
        ),
    ],
)
def test_help_names_every_setting(
    tmp_path: Path, command: tuple[str, str], mentions: tuple[str, ...]
) -> None:
    result = run(command[0], REPOSITORY / command[1], "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert all(text in result.stdout for text in mentions)
    assert list(tmp_path.iterdir()) == []


def test_voc_script_refuses_unknown_options_and_a_second_argument(tmp_path: Path) -> None:
    script = REPOSITORY / "download_voc.sh"
    assert "unknown option --root" in run("bash", script, "--root", cwd=tmp_path).stderr
    assert (
        "expected one argument, the data root, found 2" in run("bash", script, "a", "b", cwd=tmp_path).stderr
    )
