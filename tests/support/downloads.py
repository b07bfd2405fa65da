"""The archives of the download scripts, a server's state, and the scripts run against it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.paths import ROOT as REPOSITORY

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


EXPECTED_VOC = {**VOC_FILES, **under("SegmentationClassAug", AUG_FILES), **under("list", LIST_FILES)}


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
