"""tools/predict.py: masks, overlays and shares of images of any size, under their names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from datasets.file_dataset import read_image
from datasets.shapes import ShapesDataset
from datasets.transforms import resize_short_side
from models import load_model
from tests.support.cli import run_tool, write_tiny_config
from tools.predict import adapt_config, find_short_sides, main
from tools.predicting.inputs import Images, describe_left_out, find_images
from tools.predicting.outputs import OPACITY
from tools.predicting.videos import read_frames
from trainer import tiles
from trainer.config import load_config
from trainer.inference import predict, score_views
from utils.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images of different sizes, one in a folder of its own."""
    folder = tmp_path / "images"
    for i, (name, height, width) in enumerate([("a", 60, 45), ("b", 45, 60), ("inner/a", 33, 90)]):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = ShapesDataset("val", 3, 90).read(f"val_{i}")[0]
        Image.fromarray(drawn[:height, :width]).save(path)
    return folder


def checkpoint(run: Path) -> str:
    return str(run / "checkpoints" / "step_1.pth")


@pytest.mark.parametrize(
    ("options", "mode", "short_side"),
    [
        (["--batch-size", "2"], "whole", None),  # between the crop, 32, and twice that, as training scales
        (["--batch-size", "2", "--short-side", "32"], "whole", 32),
        (["--mode", "sliding", "--short-side", "own", "--batch-size", "2"], "sliding", None),
    ],
)
def test_masks_are_what_the_model_says_at_the_images_own_size(
    images: Path, finished_run: Path, tmp_path: Path, options: list[str], mode: str, short_side: int | None
) -> None:
    output = tmp_path / "out"
    arguments = [checkpoint(finished_run), str(images), "--output", str(output), "--num-workers", "0"]
    assert main([*arguments, "--device", "cpu", *options]) == 0
    model, info = load_model(checkpoint(finished_run))
    config = adapt_config(load_config(finished_run / "config.yaml"), mode, 2)
    entries = json.loads((output / "predictions.json").read_text())["images"]
    assert [entry["mask"] for entry in entries] == ["masks/a.png", "masks/b.png", "masks/inner/a.png"]
    for entry in entries:
        pixels = read_image(Path(entry["image"]))
        seen = torch.tensor(pixels).permute(2, 0, 1)
        if short_side is not None:
            seen = resize_short_side(seen, short_side, InterpolationMode.BILINEAR)
        expected = predict(model, seen[None], [torch.Size(pixels.shape[:2])], config)[0].numpy()
        mask = Image.open(output / entry["mask"])
        found = np.array(mask)
        assert mask.mode == "P"
        assert (entry["width"], entry["height"]) == mask.size == pixels.shape[1::-1]
        np.testing.assert_array_equal(found, expected)
        shares = {name: np.mean(expected == c) for c, name in enumerate(info.class_names) if c in expected}
        assert entry["shares"] == pytest.approx(shares)
        colours = np.array(info.palette)[expected]
        np.testing.assert_array_equal(np.array(mask.convert("RGB")), colours)
        mixed = np.where(expected[..., None] > 0, OPACITY * colours + (1 - OPACITY) * pixels, pixels)
        np.testing.assert_array_equal(np.array(Image.open(output / entry["overlay"])), mixed.round())


@pytest.mark.parametrize(
    ("fields", "asked", "is_solved", "expected"),
    [
        ([], None, False, (32, 64)),
        (["train.max_scale=1.5"], None, False, (32, 48)),
        (["train.min_scale=0.5", "train.max_scale=0.5"], None, False, (32, 32)),
        ([], None, True, (32, 32)),
        ([], 40, False, (40, 40)),
        ([], "own", True, None),
        (["evaluate.mode=whole", "evaluate.short_side=own"], None, True, None),
        (["evaluate.mode=whole", "evaluate.short_side=90"], None, False, (90, 90)),
    ],
)
def test_images_keep_their_size_within_what_the_model_was_trained_at(
    tmp_path: Path, fields: list[str], asked: int | str | None, is_solved: bool, expected: object
) -> None:
    config = load_config(write_tiny_config(tmp_path), fields)
    assert find_short_sides(asked, config, is_solved) == expected


def test_an_image_outside_the_range_is_scaled_to_its_nearer_end(tmp_path: Path) -> None:
    sides = {"small": 10, "within": 40, "large": 90}
    for name, side in sides.items():
        Image.fromarray(np.zeros((side, 2 * side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    dataset = Images([tmp_path / f"{name}.png" for name in sides], (20, 60))
    assert [dataset[i][0].shape[1] for i in range(3)] == [20, 40, 60]


def test_pixels_that_the_model_is_less_sure_of_than_asked_get_no_class(
    images: Path, finished_run: Path, tmp_path: Path
) -> None:
    output, image = tmp_path / "out", images / "a.png"
    arguments = [checkpoint(finished_run), str(image), "--output", str(output), "--num-workers", "0"]
    model, _ = load_model(checkpoint(finished_run))
    config = adapt_config(load_config(finished_run / "config.yaml"), "whole", 2)
    pixels = read_image(image)
    seen = resize_short_side(torch.tensor(pixels).permute(2, 0, 1), 32, InterpolationMode.BILINEAR)
    scores = score_views(model, seen[None], config).detach()
    scores = torch.nn.functional.interpolate(scores, size=pixels.shape[:2], mode="bilinear")
    probability, classes = scores.softmax(dim=1)[0].max(dim=0)
    middle = float(probability.median())
    view = ["--short-side", "32", "--min-confidence", str(middle), "--confidence"]
    assert main([*arguments, "--device", "cpu", *view]) == 0
    found = np.array(Image.open(output / "masks" / "a.png"))
    expected = classes.masked_fill(probability < middle, 255).numpy()
    assert (found != expected).mean() < 0.01  # pixels on the border of what is sure
    assert 0.4 < (found == 255).mean() < 0.6
    (entry,) = json.loads((output / "predictions.json").read_text())["images"]
    assert entry["shares"]["(unsure)"] == pytest.approx((found == 255).mean())
    shown = np.array(Image.open(output / "overlays" / "a.png"))
    assert (shown[found == 255] == pixels[found == 255]).all()
    grey = np.array(Image.open(output / "confidence" / "a.png"))
    assert np.abs(grey - 255 * probability.numpy()).max() < 2
    assert entry["confidence"] == "confidence/a.png"
    assert entry["mean_confidence"] == pytest.approx(float(probability.mean()), abs=1e-3)


def test_the_command_line_tells_bad_images_by_name_and_does_the_others(
    images: Path, finished_run: Path, tmp_path: Path
) -> None:
    (images / "b.png").write_bytes(b"no image")
    result = run_tool(
        "predict", checkpoint(finished_run), images, "--output", tmp_path / "out", "--device", "cpu"
    )
    assert result.returncode == 2
    assert result.stdout == f"{tmp_path / 'out'}: 2 of 3 images, 5 classes\n"
    assert "error: 1 images could not be read:" in result.stderr
    assert f"{images / 'b.png'}: not an image" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "masks").rglob("*.png")) == ["a.png", "a.png"]
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [c["name"] for c in written["classes"]] == ["background", "ring", "disc", "star", "cross"]
    assert written["classes"][1] == {"id": 1, "name": "ring", "colour": [128, 0, 128]}


class TestFindImages:
    def test_files_folders_and_globs(self, images: Path, tmp_path: Path) -> None:
        assert find_images([str(images / "b.png")], tmp_path / "out") == {Path("b"): images / "b.png"}
        whole = {
            Path("a"): images / "a.png",
            Path("b"): images / "b.png",
            Path("inner/a"): images / "inner/a.png",
        }
        assert find_images([str(images)], tmp_path / "out") == whole
        assert find_images([str(images / "[ab].png")], tmp_path / "out").keys() == {Path("a"), Path("b")}

    def test_images_of_a_glob_keep_their_path_below_its_fixed_part(
        self, images: Path, tmp_path: Path
    ) -> None:
        expected = {
            Path("a"): images / "a.png",
            Path("b"): images / "b.png",
            Path("inner/a"): images / "inner/a.png",
        }
        for pattern in ("**/*.png", "*", "**"):
            assert find_images([str(images / pattern)], tmp_path / "out") == expected
        nested = find_images([str(tmp_path / "im*" / "inner" / "*.png")], tmp_path / "out")
        assert nested == {Path("images/inner/a"): images / "inner/a.png"}

    def test_a_glob_takes_images_alone_a_file_that_is_named_counts_whatever_its_suffix(
        self, images: Path, tmp_path: Path
    ) -> None:
        (images / "b.txt").touch()
        (images / "photo.raw").touch()
        assert find_images([str(images / "*")], tmp_path / "out").keys() == {
            Path("a"),
            Path("b"),
            Path("inner/a"),
        }
        raw = {Path("photo"): images / "photo.raw"}
        assert find_images([str(images / "photo.raw")], tmp_path / "out") == raw

    def test_what_is_no_image_is_named(self, images: Path, tmp_path: Path) -> None:
        for name in ("notes.txt", "inner/b.heic", "clip.MP4", ".hidden"):
            (images / name).touch()
        left_out: list[Path] = []
        found = find_images([str(images), str(images / "*")], tmp_path / "out", left_out)
        assert found[Path("clip")] == images / "clip.MP4"
        assert {path.name for path in left_out} == {"notes.txt", "b.heic"}
        told = "left out, as they are no images by their suffix: "
        assert describe_left_out([Path("b.heic"), Path("a.txt")]) == told + "'b.heic', 'a.txt'"
        many = [Path(f"{i}.txt") for i in range(7)]
        assert describe_left_out(many) == f"{told}'0.txt', '1.txt', '2.txt', '3.txt', '4.txt' and 2 more"

    def test_earlier_results_are_no_input_of_globs_and_by_name(self, images: Path) -> None:
        for pattern in ("**/*.png", "*"):
            assert find_images([str(images / pattern)], images / "inner").keys() == {Path("a"), Path("b")}
        with pytest.raises(FileNotFoundError, match="outside --output"):
            find_images([str(images / "inner" / "a.png")], images / "inner")

    def test_globs_whose_images_share_a_name_are_refused(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"both being named a; rename one"):
            find_images([str(images / "*.png"), str(images / "inner" / "*.png")], tmp_path / "out")

    def test_an_image_named_twice_is_one_image(self, images: Path, tmp_path: Path) -> None:
        assert len(find_images([str(images), str(images / "a.png")], tmp_path / "out")) == 3

    def test_hidden_files_other_files_and_earlier_results_are_left_out(self, images: Path) -> None:
        (images / ".hidden.png").touch()
        (images / "notes.txt").touch()
        assert find_images([str(images)], images / "inner").keys() == {Path("a"), Path("b")}

    def test_two_images_of_one_name_are_refused(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"inner/a\.png: its results would replace those of .*/a\.png"):
            find_images([str(images / "a.png"), str(images / "inner" / "a.png")], tmp_path / "out")

    @pytest.mark.parametrize("given", ["nothing.png", "*.bmp", "."])
    def test_an_input_without_images_is_refused_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="no image; give a file, a glob, or a folder"):
            find_images([given], tmp_path / "out")


def test_a_wrong_checkpoint_is_one_message_and_exit_code_2(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(images / "a.png"), str(images), "--output", str(tmp_path / "out"), "--device", "cpu"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {images / 'a.png'}: not a readable checkpoint")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["0", "-3", "8.5", "large"])
@pytest.mark.parametrize(("option", "more"), [("--batch-size", ""), ("--short-side", ", or 'own'")])
def test_numbers_that_are_none_are_refused_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], option: str, more: str, value: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["model.pth", "photos", "--output", "out", f"{option}={value}"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"error: argument {option}: '{value}': give a whole number of at least 1{more}\n"
    )


def write_video(path: Path, num_frames: int) -> None:
    """Frames of 64x48 pixels, each of one grey: 40, 60, 80, …"""
    av = pytest.importorskip("av", reason="pip install av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 + 20 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_frames_of_a_video_have_masks_in_a_folder_of_its_name(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_video(folder / "clip.mp4", 5)
    (folder / "broken.avi").write_bytes(b"no video")
    (folder / "notes.txt").touch()
    arguments = [checkpoint(finished_run), str(folder), "--output", str(output), "--every", "2"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--device", "cpu"])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "broken.avi: not a video that av can decode" in captured.err
    assert captured.out.splitlines() == [
        "left out, as they are no images by their suffix: 'notes.txt'",
        f"{output}: 3 of 3 images, 5 classes",
    ]
    frames = ["frame_000000.png", "frame_000002.png", "frame_000004.png"]
    assert sorted(path.name for path in (output / "masks" / "clip").iterdir()) == frames
    entries = json.loads((output / "predictions.json").read_text())["images"]
    assert entries[1]["image"] == f"{folder / 'clip.mp4'}, frame 2"
    overlay = np.array(Image.open(output / "overlays" / "clip" / frames[2]))
    mask = np.array(Image.open(output / "masks" / "clip" / frames[2]))
    assert overlay.shape == (48, 64, 3)
    assert np.abs(overlay[mask == 0].astype(int) - 120).max(initial=0) < 5


def test_a_video_without_av_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"clip\.mp4: a video, which the package av reads: pip install av"):
        next(read_frames(tmp_path / "clip.mp4", 1))


def test_large_images_are_said_to_be_looked_at_in_tiles(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "LARGEST_SEEN", 50 * 50)
    for name, side in (("large", 60), ("small", 40)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in ("large", "small")]
    output = ["--output", str(tmp_path / "out"), "--num-workers", "0", "--device", "cpu"]
    assert main([checkpoint(finished_run), *images, *output]) == 0
    assert capsys.readouterr().out.startswith("1 images are large, and were looked at in tiles\n")
