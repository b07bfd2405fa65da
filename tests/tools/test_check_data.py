"""tools/check_data.py: everything that is wrong with a data set, at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.cli import set_fields, write_tiny_config
from tests.support.data import paint, stripes, write_folder, write_mask, write_sample, write_voc
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


def check(
    folder: Path, *overrides: str, task: str = "[[pear], [kiwi]]", page: bool = False, again: bool = False
) -> int:
    config = write_tiny_config(folder)
    fields = [
        "data.name=folder",
        f"data.root={folder / 'data'}",
        f"task={task}",
        "data.num_workers=2",
        *overrides,
    ]
    more = ["--html", str(folder / "out" / "data.html")] if page else []
    more += ["--overwrite"] if again else []
    return main(
        ["--config", str(config), "--json", str(folder / "out" / "report.json"), *more, *set_fields(*fields)]
    )


def test_a_sound_data_set_has_no_problem_and_exit_code_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sound(tmp_path / "data")
    assert check(tmp_path) == 0
    *table, summary = capsys.readouterr().out.splitlines()
    assert summary == f"folder {tmp_path / 'data'}: 8 train, 8 val images, no problems"
    # Images are 16 to 23 wide; of odd widths, the middle column is background. Those of kiwi are odd.
    assert [line.split() for line in table[1:]] == [
        ["0", "background", "4", "50.00", "%", "8", f"{8000 / 156:.2f}", "%"],
        ["0", "pear", "4", "50.00", "%", "4", f"{3800 / 156:.2f}", "%"],
        ["1", "kiwi", "4", f"{3800 / 80:.2f}", "%", "4", f"{3800 / 156:.2f}", "%"],
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["problems"] == report["warnings"] == []
    assert report["num_images"] == {"train": 8, "val": 8}
    assert [step["num_train_images"] for step in report["steps"]] == [4, 4]
    (kiwi,) = report["steps"][1]["classes"]
    assert kiwi["train_images"] == kiwi["val_images"] == 4
    assert kiwi["train_share"] == 38 / 80


def test_small_steps_and_rare_or_absent_classes_are_warnings_and_the_page_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sound(tmp_path / "data")
    rare = np.zeros((40, 40), np.uint8)
    rare[:2, :2] = 3
    rare[:, 20:] = 1
    rare[39] = 255
    write_sample(root / "images" / "train" / "f.jpg", root / "masks" / "train" / "f.png", rare)
    assert check(tmp_path, "train.batch_size=2", task="[[pear, fig], [kiwi]]", page=True) == 0
    *_, absent, fig, summary = capsys.readouterr().out.splitlines()
    assert absent.startswith("warning: class 'fig' (id 3): no sound val image shows it; no score")
    # 4 pixels of fig, of four images of pear (16 rows of 16, 18, 20 and 22 pixels) and 39 rows of 40.
    share = 4 / (16 * (16 + 18 + 20 + 22) + 39 * 40)
    assert fig.startswith(f"warning: class 'fig' has {share:.2%} of the pixels of step 0's training images")
    assert summary.endswith("9 train, 8 val images, no problems, 2 warnings")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"][0]["classes"][2]["train_share"] == pytest.approx(share)
    page = (tmp_path / "out" / "data.html").read_text()
    # Two images of both splits for pear and for kiwi; one for fig, which is among those of pear.
    assert page.count("<figure>") == 8
    assert '<tr class="rare"><td class="left">0</td>' in page
    assert "train f: pear, fig" in page
    assert page.count("src=") == page.count('src="data:image/jpeg;base64,')
    assert check(tmp_path, task="[[pear], [kiwi], [fig]]", again=True) == 0
    assert "warning: step 2 (fig): 1 training images in setting 'overlap', fewer than train.batch_size 4" in (
        capsys.readouterr().out
    )


def test_old_classes_are_looked_for_in_their_own_folder_and_need_no_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sound(tmp_path / "old")
    masks = {f"n{i}": stripes(0, 3, height=16, width=16 + i) for i in range(4)}
    write_folder(
        tmp_path / "data", CLASSES, masks, {f"w{i}": m.T.copy() for i, m in enumerate(masks.values())}
    )
    fields = ("init_from=step_0.pth", f"data.val_root_old={root}")
    assert check(tmp_path, *fields, task="[[pear, kiwi], [fig]]") == 0
    assert capsys.readouterr().out.endswith("4 train, 4 val, 8 val_old images, no problems\n")
    write_mask(root / "masks" / "val" / "v1.png", stripes(9, height=17, width=16))
    assert check(tmp_path, *fields, task="[[pear, kiwi], [fig]]", again=True) == 2
    assert "v1.png: found ids [9]" in capsys.readouterr().out


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
    *lines, summary = capsys.readouterr().out.splitlines()[5:]
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
        "step 2 (fig): 0 training images in setting 'overlap'; training would refuse",
        "warning: class 'fig' (id 3): no sound val image shows it",
        "warning: step 0 (background, pear): 1 training images",
        "warning: step 1 (kiwi): 1 training images in setting 'overlap', fewer than train.batch_size 4; an epoch is",
    ]
    for text, line in zip(expected, lines, strict=True):
        assert text in line
    assert summary.endswith("6 train, 8 val images, 11 problems, 3 warnings")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["problems"] == lines[:11]


def test_folders_among_the_images_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sound(tmp_path / "data")
    (root / "images" / "train" / "more").mkdir()
    (root / "images" / "train" / ".hidden").mkdir()
    assert check(tmp_path) == 2
    *_, line, _ = capsys.readouterr().out.splitlines()
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
    *lines, summary = capsys.readouterr().out.splitlines()[4:]
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
