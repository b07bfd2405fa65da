"""Bad files: every one is named in a sentence, and skipped where the config says so, however many read them."""

from __future__ import annotations

import io
import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import main
from datasets import folder, voc
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset, read_image
from datasets.incremental import StepDataset, TrainSampler, ValidationDataset
from datasets.masks import DataError, read_mask
from datasets.transforms import EvaluateTransform, TrainTransform
from datasets.unreadable import TooManySkippedError, Unreadable
from tests.support.cli import LAUNCHER_VARIABLES, run_main, set_fields, write_tiny_config
from tests.support.data import Mask, stripes, write_folder, write_mask, write_voc
from utils.distributed import Worker

CLASSES = ["pear", "kiwi"]
IDENTITY = np.arange(256, dtype=np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)


def jpeg(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def cut(path: Path) -> None:
    """Take the last bytes of a file away: its header stays whole."""
    path.write_bytes(path.read_bytes()[:-30])


# One file


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 40, 1000])
def test_a_cut_jpeg_is_refused_by_name(tmp_path: Path, progressive: bool, lost: int) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(progressive=progressive)[:-lost])
    with pytest.raises(DataError, match=r"image\.jpg: not an image .*replace the file"):
        read_image(path)


def test_a_cut_jpeg_is_refused_where_opencv_would_fill_it_with_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.jpg"
    thumbnail = b"\xff\xd8\xff\xda thumbnail \xff\xd9"
    for content, is_whole in ((jpeg(), True), (jpeg() + b"trailer", True), (jpeg()[:-30], False)):
        # A thumbnail in the header has an end marker of its own.
        path.write_bytes(content[:2] + thumbnail + content[2:])
        monkeypatch.setattr("mmcv.imfrombytes", lambda *_, **__: NOISE)
        if is_whole:
            assert read_image(path) is NOISE
        else:
            with pytest.raises(DataError, match="the JPEG is cut short"):
                read_image(path)


def test_an_empty_file_is_called_empty_wherever_it_is_met(tmp_path: Path) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1), "b": stripes(1)}, {})
    image, mask = root / "images" / "train" / "a.jpg", root / "masks" / "train" / "b.png"
    image.write_bytes(b"")
    mask.write_bytes(b"")
    for read, path in ((read_image, image), (read_mask, mask)):
        with pytest.raises(
            DataError, match=rf"{path.name}: not an? .*\(the file is empty\); replace the file"
        ):
            read(path)
    with pytest.raises(DataError, match=r"a\.jpg: .*empty.*\n.*b\.png: .*empty"):
        index_classes(folder.open_split(root, "train"), None, 0, progress=False)


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", ".jpg", 77, (77, 77, 77)),
        ("L", ".png", 77, (77, 77, 77)),
        ("LA", ".png", (77, 0), (77, 77, 77)),
        ("1", ".png", 1, (255, 255, 255)),
        ("I;16", ".png", 0x4D00, (77, 77, 77)),
        ("RGBA", ".png", (10, 20, 30, 0), (10, 20, 30)),
        ("RGBA", ".webp", (77, 77, 77, 255), (77, 77, 77)),
        ("P", ".png", 5, None),
        ("CMYK", ".jpg", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_images_of_every_mode_become_rgb(
    tmp_path: Path, mode: str, suffix: str, colour: Any, expected: tuple[int, ...] | None
) -> None:
    path = tmp_path / f"image{suffix}"
    image = Image.new(mode, (16, 8), colour)
    image.save(path)
    pixels = read_image(path)
    assert (pixels.shape, pixels.dtype) == ((8, 16, 3), np.uint8)
    colours = np.asarray(image.convert("RGB")) if expected is None else np.full(pixels.shape, expected)
    np.testing.assert_allclose(pixels.astype(int), colours, atol=3)


@pytest.mark.parametrize(("bits", "num_ids"), [(2, 4), (4, 16)])
def test_a_grey_mask_of_few_bits_is_refused_because_decoders_stretch_its_ids(
    tmp_path: Path, bits: int, num_ids: int
) -> None:
    path = tmp_path / "mask.png"
    ids = stripes(*range(num_ids))
    image = Image.fromarray(ids)
    image.putpalette([0, 0, 0] * num_ids)
    image.save(path, bits=bits)
    # Pillow writes few bits with a palette only: its header is turned into that of a grey file (colour type 0).
    content = path.read_bytes()
    header = content[12:25] + b"\0" + content[26:29]
    path.write_bytes(
        content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[content.index(b"IDAT") - 4 :]
    )
    assert np.array_equal(np.asarray(Image.open(path)), ids * (255 // (num_ids - 1)))
    with pytest.raises(DataError, match=rf"mask\.png: .*8-bit.*found a PNG of mode L \(L;{bits}\)"):
        read_mask(path)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_palette_mask_of_few_bits_keeps_its_ids(tmp_path: Path, bits: int) -> None:
    image = Image.fromarray(stripes(0, 1, 2, 3))
    image.putpalette([9 * i for i in range(4) for _ in range(3)])
    image.save(tmp_path / "mask.png", bits=bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), stripes(0, 1, 2, 3))


@pytest.mark.parametrize("kind", ["I;16", "jpeg"])
def test_masks_of_16_bits_and_lossy_ones_are_refused_on_both_ways_in(tmp_path: Path, kind: str) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1)}, {})
    path = root / "masks" / "train" / "a.png"
    if kind == "jpeg":
        Image.fromarray(stripes(1)).save(path, "JPEG")
    else:
        Image.fromarray(stripes(1).astype(np.uint16)).save(path)
    dataset = folder.open_split(root, "train")
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        with pytest.raises(DataError, match=r"a\.png: a mask must be an 8-bit PNG .*; found a .*; save"):
            read()


def test_an_id_that_appears_after_the_index_was_made_is_refused_when_it_is_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(0, 1, 255)}, {})
    dataset = folder.open_split(root, "train")
    assert dataset.read("a")[1].max() == 255
    write_mask(root / "masks" / "train" / "a.png", stripes(0, 3, 254, 255))
    with pytest.raises(DataError, match=r"a\.png: found ids \[3, 254\]; allowed are 0 to 2, and 255"):
        dataset.read("a")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_and_its_mask_taken_as_it_lies(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, 16:] = 255  # a bright corner: right, top
    mask = (upright[:, :, 0] // 255).astype(np.uint8)
    write_mask(tmp_path / "masks" / "train" / "a.png", mask)
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(turn_back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images" / "train").mkdir(parents=True)
    stored.save(tmp_path / "images" / "train" / "a.jpg", exif=exif, quality=95)
    (tmp_path / "classes.txt").write_text("pear\n")
    dataset = folder.open_split(tmp_path, "train")
    image, label = dataset.read("a")
    np.testing.assert_array_equal(image[:, :, 0] > 127, label == 1)
    assert index_classes(dataset, None, 0, progress=False) == {"a": {0, 1}}


def test_a_mask_drawn_on_an_image_before_it_was_turned_is_told_so(tmp_path: Path) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1, height=6, width=4)}, {})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(root / "images" / "train" / "a.jpg", exif=exif)
    dataset = folder.open_split(root, "train")
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        with pytest.raises(DataError, match=r"mask is 4x6 .* is 6x4; .*EXIF orientation.*turn the mask"):
            read()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_name_that_is_not_utf_8_is_refused_when_files_are_listed(tmp_path: Path, kind: str) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1)}, {})
    suffix = {"images": b".jpg", "masks": b".png"}[kind]
    Path(os.fsdecode(os.fsencode(root / kind / "train") + b"/caf\xe9" + suffix)).write_bytes(b"")
    with pytest.raises(
        DataError, match=rf"{kind}/train: the file name b'caf\\xe9\{suffix.decode()}' is not UTF-8"
    ):
        folder.open_split(root, "train")


def test_lists_that_are_not_utf_8_are_refused_by_name(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a": stripes(1)}, {"b": stripes(1)})
    (root / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"val\.txt: not UTF-8 text .*save it as UTF-8"):
        voc.open_split(tmp_path / "voc", "val")
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"classes\.txt: not UTF-8 text"):
        folder.open_split(tmp_path, "train")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (7, 3), (15, 16)])
def test_images_of_one_pixel_and_smaller_than_the_crop_are_trained_and_evaluated(
    tmp_path: Path, height: int, width: int
) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(2, height=height, width=width)}, {}, suffix=".png")
    source = folder.open_split(root, "train")
    transform = TrainTransform(16, 0.5, 2.0, (1.0, 2.0, 3.0))
    image, label, problem = StepDataset(source, ["a"], IDENTITY, transform, seed=0, step=0)[(0, 0)]
    assert (image.shape, label.shape, problem) == ((3, 16, 16), (16, 16), "")
    assert set(label.unique().tolist()) <= {2, 255}
    assert 2 in label
    for mode in ("center_crop", "whole"):
        dataset = ValidationDataset(source, ["a"], IDENTITY, EvaluateTransform(16, mode))
        image, label, problem = dataset[0]
        assert min(image.shape[1:]) == 16
        assert label.shape == ((16, 16) if mode == "center_crop" else (height, width))
        assert (label.unique().tolist(), problem) == ([2], "")


@pytest.mark.parametrize(("width", "is_fine"), [(100, True), (101, False)])
def test_an_image_that_scaling_would_blow_up_is_refused(tmp_path: Path, width: int, is_fine: bool) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1, height=1, width=width)}, {}, suffix=".png")
    dataset = folder.open_split(root, "train")
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        if is_fine:
            read()
        else:
            with pytest.raises(DataError, match=r"a\.png: the image is 101x1 .* at most 100 times the other"):
                read()


# Skipping


@pytest.fixture
def source(tmp_path: Path) -> FileDataset:
    """Eight images; 2 and 3 are cut short, 7 is gone."""
    masks = {f"i{i}": stripes(0, 1 + i % 2, height=20, width=24) for i in range(8)}
    root = write_folder(tmp_path, CLASSES, masks, masks)
    dataset = folder.open_split(root, "train")
    cut(root / "images" / "train" / "i2.jpg")
    cut(root / "masks" / "train" / "i3.png")
    (root / "images" / "train" / "i7.jpg").unlink()
    return dataset


def step_dataset(source: FileDataset) -> StepDataset:
    return StepDataset(source, source.ids, IDENTITY, TrainTransform(16, 0.5, 2.0, (0.0,) * 3), seed=3, step=1)


def test_the_next_readable_image_of_the_step_stands_in_with_the_augmentation_of_the_sample(
    source: FileDataset,
) -> None:
    dataset = step_dataset(source)
    image, label, problems = dataset[(5, 2)]
    whole = StepDataset(source, ["i4"] * 8, IDENTITY, dataset.transform, seed=3, step=1)[(5, 2)]
    assert torch.equal(image, whole[0])
    assert torch.equal(label, whole[1])
    first, second = problems.splitlines()
    assert "i2.jpg: not an image" in first
    assert "i3.png: not a mask" in second
    image, _, problems = dataset[(0, 7)]  # the step's last: the search begins anew
    assert torch.equal(image, StepDataset(source, ["i0"] * 8, IDENTITY, dataset.transform, 3, 1)[(0, 7)][0])
    assert problems.endswith(
        "i7.jpg: cannot be read (No such file or directory); restore the file or its rights"
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_and_problems_do_not_depend_on_the_number_of_workers(
    source: FileDataset, num_workers: int
) -> None:
    def load(num_workers: int) -> tuple[list[torch.Tensor], list[str]]:
        unreadable = Unreadable("skip", 0.5, 8, "step 1")
        sampler = TrainSampler(8, 4, 2, seed=0, step=1)
        loader = DataLoader(step_dataset(source), batch_sampler=sampler, num_workers=num_workers)
        return [x for batch in unreadable.watch(loader) for x in batch], list(unreadable.problems)

    (ours, our_problems), (theirs, their_problems) = load(0), load(num_workers)
    assert len(ours) == len(theirs) == 8
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert our_problems == their_problems
    assert {Path(line.split(":")[0]).name for line in our_problems} == {"i2.jpg", "i3.png", "i7.jpg"}


def test_where_no_image_can_be_read_no_pixel_counts(source: FileDataset) -> None:
    dataset = step_dataset(source)
    dataset.image_ids = ["i7", "i2"]
    image, label, problems = dataset[(0, 1)]
    assert (image.shape, label.unique().tolist(), len(problems.splitlines())) == ((3, 16, 16), [255], 2)


def test_a_bad_validation_image_counts_no_pixel_and_is_told(source: FileDataset) -> None:
    dataset = ValidationDataset(source, source.ids, IDENTITY, EvaluateTransform(16, "center_crop"))
    image, label, problem = dataset[2]
    assert (image.shape, label.shape, label.unique().tolist()) == ((3, 16, 16), (16, 16), [255])
    assert "i2.jpg" in problem
    assert dataset[1][2] == ""


def batch(*problems: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    return torch.zeros(1), torch.zeros(1), list(problems)


def test_raise_ends_at_the_first_batch_with_a_problem() -> None:
    batches = iter([batch("", ""), batch("", "a.jpg: cut"), batch("")])
    watched = Unreadable("raise", 1.0, 8, "training of step 1").watch(batches)
    next(watched)
    with pytest.raises(DataError, match=r"^training of step 1: .*data\.on_error=skip:\na\.jpg: cut$"):
        next(watched)


@pytest.mark.parametrize(
    ("num_bad", "max_skipped", "ends"),
    [
        (0, 0.0, False),
        (1, 0.0, True),
        (1, 0.01, False),
        (2, 0.01, True),
        (29, 0.29, False),
        (100, 1.0, False),
    ],
)
def test_skip_ends_only_above_the_share_and_counts_an_image_once(
    num_bad: int, max_skipped: float, ends: bool
) -> None:
    unreadable = Unreadable("skip", max_skipped, 100, "training of step 0")
    names = [f"{i}.jpg: cut" for i in range(num_bad)]
    assert len(list(unreadable.watch([batch(*names), batch("\n".join(names))]))) == 2
    assert len(unreadable.problems) == num_bad
    if ends:
        with pytest.raises(
            TooManySkippedError, match=rf"step 0: {num_bad} of 100 images .*data\.max_skipped"
        ) as e:
            unreadable.agree(Worker(torch.device("cpu")))
        assert "0.jpg: cut" in str(e.value)
    else:
        unreadable.agree(Worker(torch.device("cpu")))
    assert all(name in unreadable.describe() for name in names)


def test_the_index_leaves_bad_samples_out_and_names_them(tmp_path: Path, source: FileDataset) -> None:
    (tmp_path / "images" / "train" / "i7.jpg").write_bytes(b"")
    unreadable = Unreadable("skip", 0.5, 8, "folder train")
    cache = tmp_path / "cache"
    for _ in range(2):  # what is wrong is never cached
        found = index_classes(source, cache, 2, progress=False, unreadable=unreadable)
        # That image 2 ends early is not in its header: training will meet it.
        assert list(found) == ["i0", "i1", "i2", "i4", "i5", "i6"]
    assert [Path(line.split(":")[0]).name for line in unreadable.problems] == ["i3.png", "i7.jpg"]
    with pytest.raises(TooManySkippedError, match=r"2 of 8 images .*25 %"):
        index_classes(source, cache, 0, progress=False, unreadable=Unreadable("skip", 0.1, 8, "folder train"))


# Through the command line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, and data in which the second step's image b3 (in `train`) or the image v5 (in `val`) is cut short."""
    place = tmp_path_factory.mktemp("bad_data")
    write_tiny_config(place)

    def draw(names: str, *ids: int) -> dict[str, Mask]:
        return {f"{names}{i}": stripes(0, *ids, height=32, width=40) for i in range(8)}

    for name in ("train", "val"):
        train, val = draw("a", 1) | draw("b", 2), draw("v", 1, 2)
        root = write_folder(place / name, CLASSES, train, val)
        cut(root / "images" / name / {"train": "b3.jpg", "val": "v5.jpg"}[name])
    write_folder(place / "both", CLASSES, train, val)
    for split, image in (("train", "b3"), ("val", "v5")):
        cut(place / "both" / "images" / split / f"{image}.jpg")
    return place


def arguments(place: Path, data: str, name: str, *overrides: str) -> list[str]:
    fields = ["data.name=folder", f"data.root={place / data}", "task=[[pear], [kiwi]]", *overrides]
    return ["--config", str(place / "tiny.yaml"), "--log", name, *set_fields(*fields)]


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call_main(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """main.py in this process: its exit code and stderr."""

    def call(*how: str) -> tuple[int, str]:
        for name in LAUNCHER_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "argv", ["main.py", "--device", "cpu", *arguments(place, *how)])
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return call


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / f"step_{step}.pth", weights_only=True)[
        "model"
    ]
    return state


def test_a_bad_image_met_by_a_data_worker_ends_the_run_and_skip_continues_it(
    place: Path, call_main: Call
) -> None:
    code, stderr = call_main("train", "met", "data.num_workers=2")
    assert code == 2
    assert "error: training of step 1: wrong files (1); mend them, or leave them out" in stderr
    assert f"{place / 'train/images/train/b3.jpg'}: not an image" in stderr
    assert "Traceback" not in stderr
    run = place / "runs" / "met"
    assert "b3.jpg: not an image" in (run / "log.txt").read_text()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_0.pth"]
    assert len(json.loads((run / "results.json").read_text())["steps"]) == 1
    base = weights(run, 0)

    code, stderr = call_main("train", "met", "data.on_error=skip")
    assert code == 2
    assert "training of step 1: 1 of 8 images cannot be read (12.5 %; data.max_skipped allows 1 %)" in stderr
    assert "b3.jpg" in stderr

    code, stderr = call_main("train", "met", "data.on_error=skip", "data.max_skipped=0.125")
    assert code == 0
    assert all(torch.equal(base[name], tensor) for name, tensor in weights(run, 0).items())
    log = (run / "log.txt").read_text()
    assert log.count("training of step 1: 1 of 8 images cannot be read") == 2  # the refusal and the count
    assert "and are left out:\n  " in log


def test_a_bad_validation_image_ends_the_run_after_the_step_was_saved(place: Path, call_main: Call) -> None:
    code, stderr = call_main("val", "val_raise")
    assert code == 2
    assert "error: evaluation of step 0: wrong files (1)" in stderr
    assert "v5.jpg: not an image" in stderr
    assert "Traceback" not in stderr
    assert (place / "runs" / "val_raise" / "checkpoints" / "step_0.pth").exists()


def test_skipped_images_are_counted_and_named_once_over_all_ranks(place: Path) -> None:
    skip = ["data.on_error=skip", "data.max_skipped=0.2", "data.num_workers=1"]
    process = run_main(*arguments(place, "both", "skip", *skip), ranks=2)
    assert process.returncode == 0, process.stderr
    run = place / "runs" / "skip"
    log = (run / "log.txt").read_text()
    assert log.count("training of step 1: 1 of 8 images cannot be read (12.5 %") == 1
    assert log.count("b3.jpg: not an image") == 1
    assert "training of step 0" not in log
    assert [log.count(f"evaluation of step {step}: 1 of 8 images") for step in (0, 1)] == [1, 1]
    assert log.count("v5.jpg: not an image") == 2
    assert "b3.jpg: not an image" in process.stderr + process.stdout
    steps = json.loads((run / "results.json").read_text())["steps"]
    assert [step["num_val_images"] for step in steps] == [7, 7]


def test_a_bad_image_in_one_rank_is_told_by_that_rank(place: Path) -> None:
    process = run_main(*arguments(place, "train", "one_rank"), ranks=2)
    assert process.returncode != 0
    assert process.stderr.count("error: training of step 1: wrong files (1)") == 1
    assert "b3.jpg: not an image" in process.stderr
