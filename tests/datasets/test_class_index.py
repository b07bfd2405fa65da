"""The class index says what every mask shows, reads only what changed, and names wrong files."""

from __future__ import annotations

import gc
import json
import logging
import os
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import class_index, folder, voc
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset
from tests.support.data import stripes, write_folder, write_mask
from tests.support.paths import SHARED

VOC_ANIMALS = SHARED / "data" / "voc_animals"

CLASSES = ["cat", "dog", "cow"]
MASKS = {"a": stripes(0, 1), "b": stripes(2, 255, 3), "c": stripes(255), "d": stripes(0)}
EXPECTED = {"a": {0, 1}, "b": {2, 3}, "c": set(), "d": {0}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", CLASSES, MASKS, {"v": stripes(1)})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stems of the masks that were decoded, in order."""
    names: list[str] = []
    real = class_index._read_mask

    def recording(job: class_index.MaskJob) -> list[int] | str:
        names.append(Path(job.mask_path).stem)
        return real(job)

    monkeypatch.setattr(class_index, "_read_mask", recording)
    return names


def index(root: Path, cache: Path | None, num_workers: int = 0) -> dict[str, frozenset[int]]:
    return index_classes(folder.open_split(root, "train"), cache, num_workers, progress=False)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_every_mask_gives_its_ids_without_255(root: Path, num_workers: int) -> None:
    found = index(root, None, num_workers)
    assert found == EXPECTED
    assert list(found) == [*"abcd"]


def test_the_work_of_a_worker_can_be_sent_to_a_fresh_interpreter(root: Path) -> None:
    import multiprocessing

    dataset = folder.open_split(root, "train")
    job = class_index.MaskJob(str(dataset.samples["a"][0]), str(dataset.samples["a"][1]), dataset.coding)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(class_index._read_mask, (job,)) == [0, 1]


def test_a_second_call_reads_no_mask(root: Path, tmp_path: Path, reads: list[str]) -> None:
    cache = tmp_path / "new" / "cache"
    assert index(root, cache) == EXPECTED
    assert reads == [*"abcd"]
    assert index(root, cache) == EXPECTED
    assert reads == [*"abcd"]
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_no_garbage_is_looked_for_among_what_the_cache_holds(root: Path, tmp_path: Path) -> None:
    index(root, tmp_path)
    collections: list[str] = []

    def note(phase: str, _: object) -> None:
        if any(frame.name == "_load_cache" for frame in traceback.extract_stack()):
            collections.append(phase)

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        assert index(root, tmp_path) == EXPECTED
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)
    assert collections == []
    assert gc.isenabled()


def test_only_changed_and_added_masks_are_read_again(root: Path, tmp_path: Path, reads: list[str]) -> None:
    index(root, tmp_path)
    reads.clear()
    changed = root / "masks" / "train" / "b.png"
    stat = changed.stat()
    write_mask(changed, stripes(3, 255, 1))
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    write_folder(root, CLASSES, {"new": stripes(1)}, {})
    assert index(root, tmp_path) == EXPECTED | {"b": {1, 3}, "new": {1}}
    assert reads == ["b", "new"]


def test_a_changed_image_is_noticed(root: Path, tmp_path: Path, reads: list[str]) -> None:
    index(root, tmp_path)
    reads.clear()
    image = root / "images" / "train" / "b.jpg"
    Image.new("RGB", (3, 3)).save(image)
    with pytest.raises(ValueError, match=r"b\.png: the mask is 16x16 .* is 3x3"):
        index(root, tmp_path)
    assert reads == ["b"]


def test_a_cache_of_an_older_format_is_rebuilt_without_a_word(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, reads: list[str]
) -> None:
    index(root, tmp_path)
    (cache,) = tmp_path.glob("*.json")
    good = cache.read_bytes()
    cache.write_bytes(b'{"version": 1, "num_classes": 4, "masks": {"a": [1, 2, [0]]}}')
    with caplog.at_level(logging.WARNING):
        assert index(root, tmp_path) == EXPECTED
    assert caplog.text == ""
    assert reads == [*"abcd"] * 2
    assert cache.read_bytes() == good


def test_a_removed_mask_is_forgotten(root: Path, tmp_path: Path, reads: list[str]) -> None:
    index(root, tmp_path)
    reads.clear()
    for path in root.glob("*/train/b.*"):
        path.unlink()
    assert index(root, tmp_path) == {i: EXPECTED[i] for i in "acd"}
    assert reads == []
    (cache,) = tmp_path.glob("*.json")
    assert list(json.loads(cache.read_text())["ids"]) == [*"acd"]


def test_splits_and_places_have_caches_of_their_own(root: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", CLASSES, {"a": stripes(3)}, {})
    cache = tmp_path / "cache"
    index(root, cache)
    assert index(other, cache) == {"a": {3}}
    assert index_classes(folder.open_split(root, "val"), cache, 0, progress=False) == {"v": {1}}
    assert len(list(cache.iterdir())) == 3


def corrupt(**fields: object) -> bytes:
    """A cache of one mask, its coding to be filled in, but for these fields."""
    whole = {
        "version": 6,
        "coding": "CODING",
        "ids": ["a"],
        "shown": [0],
        "stamps": [*range(8)],
        "sets": [[0]],
    }
    return json.dumps({**whole, **fields}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"null",
        b'{"version": 6}',
        corrupt(ids=3),
        corrupt(sets=[[9]]),
        corrupt(shown=[1]),
        corrupt(shown=[-1]),
        corrupt(stamps=[*range(9)]),
        corrupt(sets=[[[]]]),
    ],
)
def test_a_corrupt_cache_is_rebuilt_with_a_warning(
    root: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture, reads: list[str]
) -> None:
    index(root, tmp_path)
    (cache,) = tmp_path.glob("*.json")
    good = cache.read_bytes()
    coding = class_index._digest(folder.open_split(root, "train").coding)
    cache.write_bytes(content.replace(b"CODING", coding.encode()))
    with caplog.at_level(logging.WARNING):
        assert index(root, tmp_path) == EXPECTED
    assert str(cache) in caplog.text
    assert cache.read_bytes() == good
    assert len(reads) == 8


def test_a_cache_made_for_another_number_of_classes_does_not_hide_a_wrong_id(
    root: Path, tmp_path: Path
) -> None:
    index(root, tmp_path)
    write_folder(root, CLASSES[:2], {}, {})
    with pytest.raises(ValueError, match=r"b\.png: found ids \[3\]; allowed are 0 to 2, and 255"):
        index(root, tmp_path)


def test_a_cache_folder_that_cannot_be_written_only_warns(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A file in the folder's place stands in for missing rights, which root would have anyway.
    (tmp_path / "cache").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert index(root, tmp_path / "cache") == EXPECTED
    assert "cannot write the cache" in caplog.text


def test_a_failed_write_leaves_the_old_cache_and_no_other_file(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir = tmp_path / "cache"
    index(root, cache_dir)
    before = {path: path.read_bytes() for path in cache_dir.iterdir()}

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    write_folder(root, CLASSES, {"new": stripes(1)}, {})
    assert index(root, cache_dir) == EXPECTED | {"new": {1}}
    assert {path: path.read_bytes() for path in cache_dir.iterdir()} == before
    assert "No space left" in caplog.text


def test_an_id_beyond_the_classes_names_file_ids_and_range(root: Path) -> None:
    write_folder(root, CLASSES, {"wrong": stripes(0, 4, 254, 255)}, {})
    with pytest.raises(ValueError, match=r"wrong\.png: found ids \[4, 254\]; allowed are 0 to 3, and 255"):
        index(root, None)


def test_wrong_sizes_modes_and_broken_files_are_collected_in_one_error(root: Path, tmp_path: Path) -> None:
    masks = root / "masks" / "train"
    write_mask(masks / "a.png", stripes(1, height=5, width=7))
    Image.new("RGB", (16, 16)).save(masks / "b.png")
    (masks / "c.png").write_bytes((masks / "c.png").read_bytes()[:-30])
    (root / "images" / "train" / "d.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"folder train: wrong files \(4\)") as caught:
        index(root, tmp_path / "cache")
    lines = str(caught.value).splitlines()[1:]
    assert "a.png: the mask is 7x5 (width x height), but its image" in lines[0]
    assert lines[0].endswith("is 16x16; they must be equal")
    assert "b.png: a mask must be an 8-bit PNG with one channel" in lines[1]
    assert "found a PNG of mode RGB" in lines[1]
    assert "c.png: not a mask" in lines[2]
    assert "d.jpg: not an image" in lines[3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_at_most_ten_problems_are_collected(root: Path, num_workers: int) -> None:
    write_folder(root, CLASSES, {f"wrong_{i:02}": stripes(9) for i in range(25)}, {})
    with pytest.raises(ValueError, match=r"wrong files \(the first 10\)") as caught:
        index(root, None, num_workers)
    stems = [Path(line.split(": ")[0]).stem for line in str(caught.value).splitlines()[1:]]
    assert stems == [f"wrong_{i:02}" for i in range(10)]


def test_repairing_the_image_is_enough_to_clear_a_mask(root: Path, tmp_path: Path, reads: list[str]) -> None:
    image = root / "images" / "train" / "b.jpg"
    Image.new("RGB", (3, 3)).save(image)
    with pytest.raises(ValueError, match=r"wrong files \(1\)"):
        index(root, tmp_path)
    Image.new("RGB", (16, 16)).save(image)
    reads.clear()
    assert index(root, tmp_path) == EXPECTED
    assert reads == ["b"]


@pytest.mark.parametrize(("orientation", "fits"), [(1, False), (3, False), (5, True), (6, True), (8, True)])
def test_images_on_their_side_are_measured_upright_as_the_reader_gives_them(
    tmp_path: Path, orientation: int, fits: bool
) -> None:
    root = write_folder(tmp_path, CLASSES, {"a": stripes(1, height=6, width=4)}, {})
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(root / "images" / "train" / "a.jpg", exif=exif)
    dataset = folder.open_split(root, "train")
    if fits:
        assert index(root, None) == {"a": {1}}
        assert dataset.read("a")[0].shape == (6, 4, 3)
    else:
        for read in (lambda: index(root, None), lambda: dataset.read("a")):
            with pytest.raises(ValueError, match=r"the mask is 4x6 .* is 6x4"):
                read()


def test_only_the_header_of_an_image_is_read(root: Path) -> None:
    for path in (root / "images" / "train").iterdir():
        path.unlink()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            path.with_suffix(".png")
        )
        cut = path.with_suffix(".png").read_bytes()[:100]  # the header is whole, the pixels are not
        path.with_suffix(".png").write_bytes(cut)
    assert index(root, None) == EXPECTED


def test_a_split_without_samples_has_an_empty_index(tmp_path: Path) -> None:
    empty = FileDataset("folder", "train", ("background", "cat"), ((0, 0, 0), (1, 1, 1)), {})
    assert index_classes(empty, tmp_path, 4) == {}


@pytest.mark.skipif(not VOC_ANIMALS.is_dir(), reason="real VOC files (shared/data) are absent")
def test_real_masks_show_the_published_classes_and_agree_with_the_reader() -> None:
    rows = [line.split() for line in (SHARED / "splits" / "voc_val_classes.txt").read_text().splitlines()]
    published = {image_id: set(map(int, ids)) for image_id, *ids in rows}
    dataset = voc.open_split(VOC_ANIMALS, "val")
    found = index_classes(dataset, None, 2, progress=False)
    # The files here are shrunk to 320 pixels, where a tiny object may vanish; none may appear.
    assert all(found[i] - {0} <= published[i] for i in dataset.ids)
    assert sum(found[i] - {0} != published[i] for i in dataset.ids) <= 2
    for image_id in dataset.ids[:20]:
        assert found[image_id] == set(np.unique(dataset.read_label(image_id))) - {255}
