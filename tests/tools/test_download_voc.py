"""download_voc.sh installs exactly the files of its archives, and checks them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.support.downloads import (
    AUG_ZIP,
    EXPECTED_VOC,
    LIST_FILES,
    LIST_ZIP,
    VOC_TAR,
    Server,
    make_zip,
    read_tree,
    run,
    run_voc,
    serve_voc,
    under,
)
from tests.support.paths import ROOT as REPOSITORY


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


def test_voc_script_refuses_unknown_options_and_a_second_argument(tmp_path: Path) -> None:
    script = REPOSITORY / "download_voc.sh"
    assert "unknown option --root" in run("bash", script, "--root", cwd=tmp_path).stderr
    assert (
        "expected one argument, the data root, found 2" in run("bash", script, "a", "b", cwd=tmp_path).stderr
    )
