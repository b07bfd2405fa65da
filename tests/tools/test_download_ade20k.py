"""download_ade20k.py installs exactly the files of its archive, and checks it; both scripts' help."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from tests.support.downloads import ADE_FILES, ADE_ZIP, Server, read_tree, run, run_ade, serve_ade, under
from tests.support.paths import ROOT as REPOSITORY


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
