"""tools/prepare/cvat_masks.py: CVAT's masks and their zip give the same; no zip writes elsewhere or fills the disk."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.prepare import cvat_masks
from tools.prepare_folder import main

LABELS = "# label:color_rgb:parts:actions\nbackground:0,0,0::\npear:128,64,0::\nkiwi:0,200,10::\n"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder of equal masks, pear left and kiwi below, with their photos in photos/; and the same as export.zip."""
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[:, :3] = 128, 64, 0
    mask[4:, 3:] = 0, 200, 10
    folder = tmp_path / "export"
    (folder / "SegmentationClass").mkdir(parents=True)
    (folder / "labelmap.txt").write_text(LABELS)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(mask).save(folder / "SegmentationClass" / f"{name}.png")
        Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / "photos" / f"{name}.png")
    shutil.make_archive(str(tmp_path / "export"), "zip", folder)
    return folder


def prepare(source: Path, folder: Path, *more: str) -> Path:
    output = folder / f"out_{source.name}"
    arguments = ["cvat-masks", str(source), "--output", str(output), *more]
    assert main([*arguments, "--images", str(folder / "photos"), "--num-workers", "0"]) == 0
    return output


def test_the_zip_gives_what_its_folder_gives(export: Path, tmp_path: Path) -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[:, :3], expected[4:, 3:] = 1, 2
    for source in (export, tmp_path / "export.zip"):
        output = prepare(source, tmp_path)
        masks = sorted((output / "masks").rglob("*.png"))
        assert [mask.name for mask in masks] in (["a.png", "b.png"], ["b.png", "a.png"])
        for mask in masks:
            np.testing.assert_array_equal(np.array(Image.open(mask)), expected)


def refusal(capsys: pytest.CaptureFixture[str], source: Path, *more: str) -> str:
    output = source.parent / "none"
    with pytest.raises(SystemExit) as caught:
        main(["cvat-masks", str(source), "--output", str(output), *more])
    assert caught.value.code == 2
    assert not output.exists()
    return capsys.readouterr().err


def test_a_zip_without_a_folder_of_images_is_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give the folder of its images (--images)" in refusal(capsys, tmp_path / "export.zip")


def test_zips_that_would_write_elsewhere_fill_the_disk_or_are_none_are_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ["--images", str(tmp_path / "photos")]
    with zipfile.ZipFile(tmp_path / "outside.zip", "w") as zipped:
        zipped.writestr("../outside.txt", "x")
    assert "would land outside" in refusal(capsys, tmp_path / "outside.zip", *images)
    (tmp_path / "text.zip").write_text("no zip")
    assert "no zip that can be read" in refusal(capsys, tmp_path / "text.zip", *images)
    monkeypatch.setattr(cvat_masks, "MAX_UNPACKED", 100)
    assert "unpacked; allowed are" in refusal(capsys, tmp_path / "export.zip", *images)
