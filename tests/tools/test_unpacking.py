"""tools/fetch.py unpacks an archive whole, or nothing of it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.downloads import Server, make_tar, make_zip, read_tree, run_fetch


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
