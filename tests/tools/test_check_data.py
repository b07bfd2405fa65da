"""tools/check_data.py: everything that is wrong with a data set, at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.cli import set_fields, write_tiny_config
from tests.support.data import paint, stripes, write_folder, write_mask, write_voc
from tools.check_data import main

CLASSES = ["pear", "kiwi", "fig"]


def zero_middle(path: Path) -> None:
    content = path.read_bytes()
    start = content.rfind(b"\xff\xda") + 20  # behind the header of the scan
    path.write_bytes(content[:start] + bytes(len(content) - 10 - start) + content[-10:])


def write_sound(root: Path) -> Path:
    """Eight images a split, each its own, that show pear and kiwi."""
    masks = {f"i{i}": stripes(0, 1 + i % 2, height=16, width=16 + i) for i in range(8)}
    return write_folder(
        root, CLASSES, masks, {f"v{i}": mask.T.copy() for i, mask in enumerate(masks.values())}
    )


def check(folder: Path, *overrides: str, task: str = "[[pear], [kiwi]]") -> int:
    config = write_tiny_config(folder)
    fields = [
        "data.name=folder",
        f"data.root={folder / 'data'}",
        f"task={task}",
        "data.num_workers=2",
        *overrides,
    ]
    return main(
        ["--config", str(config), "--json", str(folder / "out" / "report.json"), *set_fields(*fields)]
    )


def test_a_sound_data_set_has_no_problem_and_exit_code_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sound(tmp_path / "data")
    assert check(tmp_path) == 0
    assert capsys.readouterr().out == f"folder {tmp_path / 'data'}: 8 train, 8 val images, no problems\n"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == {"problems": [], "num_images": {"train": 8, "val": 8}}


def test_every_problem_is_listed_not_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sound(tmp_path / "data")
    images, masks = root / "images" / "train", root / "masks" / "train"
    (images / "i0.jpg").write_bytes((images / "i0.jpg").read_bytes()[:-30])
    write_mask(masks / "i0.png", stripes(9))  # both files of one sample
    write_mask(masks / "i1.png", stripes(2, height=5, width=7))
    Image.new("RGB", (18, 16)).save(masks / "i2.png")
    (images / "i3.jpg").write_bytes(b"")
    zero_middle(root / "images" / "val" / "v2.jpg")
    (images / "i4.jpg").unlink()
    (masks / "i5.png").unlink()
    shutil.copy(images / "i6.jpg", images / "i6.jpeg")
    val = root / "images" / "val"
    Image.fromarray(paint(stripes(0, 1, height=16, width=22), seed=1)).save(images / "i6.png")
    (images / "i6.jpeg").unlink()
    (images / "i6.jpg").unlink()
    (val / "v6.jpg").unlink()
    Image.fromarray(np.asarray(Image.open(images / "i6.png"))).save(val / "v6.bmp")  # the same pixels
    write_mask(root / "masks" / "val" / "v6.png", stripes(0, 1, height=16, width=22))
    assert check(tmp_path, "train.batch_size=4", task="[[pear], [kiwi], [fig]]") == 2
    *lines, summary = capsys.readouterr().out.splitlines()
    expected = [
        "i4.jpg: this image is missing",
        "i5.png: this mask is missing",
        "i0.jpg: not an image",
        "i0.png: found ids [9]; allowed are 0 to 3, and 255",
        "i1.png: the mask is 7x5 (width x height), but its image",
        "i2.png: a mask must be an 8-bit PNG",
        "i3.jpg: not an image that OpenCV can decode (the file is empty)",
        "v2.jpg: the JPEG is damaged (Corrupt JPEG data: ",
        "val image v6 has the same pixels as train image i6",
        "class 'fig' (id 3): no sound train image shows it",
        "class 'fig' (id 3): no sound val image shows it",
        "step 0 (background, pear): 1 training images",
        "step 1 (kiwi): 1 training images in setting 'overlap', fewer than train.batch_size 4; they are repeated",
        "step 2 (fig): 0 training images in setting 'overlap', fewer than train.batch_size 4; training would refuse",
    ]
    for text, line in zip(expected, lines, strict=True):
        assert text in line
    assert summary.endswith("6 train, 8 val images, 14 problems")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["problems"] == lines


def test_folders_among_the_images_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sound(tmp_path / "data")
    (root / "images" / "train" / "more").mkdir()
    (root / "images" / "train" / ".hidden").mkdir()
    assert check(tmp_path) == 2
    line, _ = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{root / 'images' / 'train' / 'more'}: is a folder, in which nothing is looked for"
    )


def test_a_split_that_does_not_open_does_not_hide_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sound(tmp_path / "data")
    shutil.rmtree(root / "images" / "val")
    write_mask(root / "masks" / "train" / "i1.png", stripes(9, height=16, width=17))
    assert check(tmp_path) == 2
    missing, wrong_id, summary = capsys.readouterr().out.splitlines()
    assert missing.startswith(f"{root / 'images' / 'val'}: no such folder")
    assert "i1.png: found ids [9]" in wrong_id
    assert summary.endswith("8 train images, 2 problems")


def test_voc_lists_what_its_lists_name_and_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {f"i{i}": stripes(0, 8 + 4 * (i % 2), width=16 + i) for i in range(8)}
    voc = write_voc(
        tmp_path / "data", masks, {f"v{i}": mask.T.copy() for i, mask in enumerate(masks.values())}
    )
    (voc / "JPEGImages" / "i1.jpg").unlink()
    (voc / "JPEGImages" / "i2.jpg").unlink()
    (voc / "SegmentationClassAug" / "v3.png").unlink()
    (voc / "JPEGImages" / "unlisted.jpg").write_bytes(b"")
    assert check(tmp_path, "data.name=voc", "train.batch_size=2", task="[[cat], [dog]]") == 2
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["i1.jpg", "i2.jpg", "v3.png"]
    assert summary.endswith("6 train, 7 val images, 3 problems")


def test_shapes_have_no_files_but_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "data.name=shapes", task="[[ring], [disc]]") == 0
    assert "16 train, 7 val images, no problems" in capsys.readouterr().out


@pytest.mark.parametrize("overrides", [["train.batch_size=true"], ["task=[[pear], [pear]]"]])
def test_a_wrong_config_or_task_has_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    write_sound(tmp_path / "data")
    try:
        code: object = check(tmp_path, *overrides)
    except SystemExit as end:
        code = end.code
    assert code == 2
    captured = capsys.readouterr()
    assert overrides[0].partition("=")[0] in captured.out + captured.err
