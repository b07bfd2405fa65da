"""datasets/image_lists.py: the images of every step from files, in each format that others publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import voc
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset
from datasets.image_lists import read_image_lists
from datasets.selection import select_images
from datasets.tasks import build_task
from tests.support.data import stripes, write_voc
from tests.support.training import WORKER, assert_equal_states, tiny, train, weights
from trainer.plan import prepare
from utils.errors import DataError

PERSON, CAT, DOG = (voc.CLASSES.index(name) for name in ("person", "cat", "dog"))
MASKS = {
    f"2007_{i:06d}": stripes(0, *classes, height=40, width=40)
    for i, classes in enumerate([(PERSON,), (CAT, DOG), (DOG,), (PERSON, DOG), (CAT,), (DOG, PERSON)] * 2)
}
TASK = build_task([["cat", "person"], ["dog"]], voc.CLASSES)
FIELDS = ("data.name=voc", "task=[[cat, person], [dog]]", "method=finetune")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC with twelve training images."""
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, MASKS, {"v": stripes(0, CAT, DOG, PERSON, height=40, width=40)})
    return folder


@pytest.fixture
def split(root: Path) -> FileDataset:
    return voc.open_split(root, "train")


def computed(split: FileDataset, setting: str) -> list[list[str]]:
    classes = index_classes(split, None, 0, progress=False)
    return [select_images(classes, TASK, step, setting) for step in TASK.steps]


def write_text(folder: Path, split: FileDataset, steps: list[list[str]]) -> None:
    for step, ids in enumerate(steps):
        (folder / f"step_{step}.txt").write_text("".join(f"{i}\n" for i in reversed(ids)))


def write_indices(folder: Path, split: FileDataset, steps: list[list[str]]) -> None:
    """MiB: places in train_aug.txt."""
    for step, ids in enumerate(steps):
        np.save(folder / f"train-{step}.npy", np.array([split.ids.index(i) for i in ids]))
        np.save(folder / f"val-{step}.npy", np.array([0]))


def write_names(folder: Path, split: FileDataset, steps: list[list[str]]) -> None:
    """DKD: both files of a sample in one text."""
    for step, ids in enumerate(steps):
        pairs = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in ids]
        np.save(folder / f"disjoint_2-1_train_{step:02d}.npy", np.array(pairs))
        np.save(folder / f"overlap_2-1_train_{step:02d}.npy", np.array(["of another setting"]))


def write_classes(folder: Path, split: FileDataset, steps: list[list[str]]) -> None:
    """SSUL: every image with its classes, counted from 0 without background."""
    classes = index_classes(split, None, 0, progress=False)
    lines = [f"{i} {' '.join(str(c - 1) for c in sorted(classes[i] - {0}))}" for i in split.ids]
    (folder / "train_cls.txt").write_text("\n".join(lines) + "\n")


Writer = Callable[[Path, FileDataset, list[list[str]]], None]


@pytest.mark.parametrize("write", [write_text, write_indices, write_names, write_classes])
def test_every_published_format_gives_the_images_of_the_setting(
    write: Writer, split: FileDataset, tmp_path: Path
) -> None:
    expected = computed(split, "disjoint")
    assert [len(ids) for ids in expected] == [4, 8]
    write(tmp_path, split, expected)
    lists = read_image_lists(tmp_path, split, TASK, "disjoint")
    assert lists.steps == expected
    assert lists.memories is None


def test_a_run_from_lists_is_the_run_that_computes_them_bit_for_bit(
    root: Path, split: FileDataset, tmp_path: Path
) -> None:
    (tmp_path / "lists").mkdir()
    write_indices(tmp_path / "lists", split, computed(split, "disjoint"))
    fields = (*FIELDS, f"data.root={root}", "setting=disjoint")
    ours = tiny(tmp_path, "listed", *fields, f"data.image_lists={tmp_path / 'lists'}")
    theirs = tiny(tmp_path, "computed", *fields)
    listed, selected = train(ours), train(theirs)
    assert_equal_states(weights(ours, 1), weights(theirs, 1))
    digests = [step["train_images_sha256"] for step in listed["steps"]]
    assert digests == [step["train_images_sha256"] for step in selected["steps"]]
    assert listed["val_images_sha256"] == selected["val_images_sha256"]
    # What a run leaves is a list itself; other images have another digest.
    again = tiny(tmp_path, "again", *fields, f"data.image_lists={ours.run_dir / 'train_images'}")
    assert prepare(again, WORKER).image_ids == prepare(ours, WORKER).image_ids
    other = train(tiny(tmp_path, "other", *FIELDS, f"data.root={root}"))
    assert other["steps"][0]["train_images_sha256"] != digests[0]


def test_the_memory_of_every_step_comes_from_memory_json(
    root: Path, split: FileDataset, tmp_path: Path
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    steps = computed(split, "overlap")
    write_text(lists, split, steps)
    kept = [i for i in steps[0] if i not in steps[1]][:2]
    content = {"step_1": {"memory_candidates": [], "memory_list": [f"{i}.jpg" for i in kept]}}
    (lists / "memory.json").write_text(json.dumps(content))
    fields = (*FIELDS, f"data.root={root}", f"data.image_lists={lists}")
    plan = prepare(tiny(tmp_path, "with", *fields, "memory.size=2"), WORKER)
    assert plan.memory_ids == ((), tuple(kept))
    assert set(plan.image_ids[1]) == {*steps[1], *kept}
    with pytest.raises(ValueError, match=r"memory\.size: 1 is less than the 2 images .* set it to 2"):
        prepare(tiny(tmp_path, "small", *fields, "memory.size=1"), WORKER)
    plan = prepare(tiny(tmp_path, "without", *fields), WORKER)
    assert plan.remarks == (f"data.image_lists: {lists / 'memory.json'} is not used, as memory.size is 0",)


def test_a_run_that_starts_from_another_s_base_step_needs_no_list_of_it(
    split: FileDataset, tmp_path: Path
) -> None:
    write_text(tmp_path, split, computed(split, "overlap"))
    (tmp_path / "step_0.txt").unlink()
    with pytest.raises(DataError, match=r"no list for step 0, but task 2-1 has steps 0 to 1"):
        read_image_lists(tmp_path, split, TASK, "overlap")
    assert read_image_lists(tmp_path, split, TASK, "overlap", needs_base=False).steps[0] == []


ONE = "2007_000000 1\n"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({}, r"expected step_0\.txt, step_1\.txt, …"),
    "two formats": (
        {"step_0.txt": "2007_000000\n", "train_cls.txt": ONE},
        r"holds lists of several formats \(step_0\.txt, train_cls\.txt\); leave one",
    ),
    "a step too many": (
        dict.fromkeys(("step_0.txt", "step_1.txt", "step_2.txt"), "2007_000000\n"),
        r"a list for step 2 \(step_2\.txt\), but task 2-1 has steps 0 to 1",
    ),
    "unknown image": (
        dict.fromkeys(("step_0.txt", "step_1.txt"), "x\n2007_000000\n"),
        r"step_0\.txt: 1 of 2 images are not in the training split of 12, such as 'x'",
    ),
    "place too large": (
        {"train-0.npy": [3, 12], "train-1.npy": [0]},
        r"train-0\.npy: holds places 3 to 12, but the training split has 12 images, 0 to 11",
    ),
    "place below 0": ({"train-0.npy": [-1], "train-1.npy": [0]}, r"holds places -1 to -1"),
    "matrix": (
        {"train-0.npy": [[0.0, 1.0]], "train-1.npy": [0]},
        r"expected a vector of whole numbers, found float64 of shape \(1, 2\)",
    ),
    "pickled objects": (
        {"train-0.npy": np.array([{}], dtype=object), "train-1.npy": [0]},
        r"train-0\.npy: not an array without pickled objects",
    ),
    "no classes": (
        {"train_cls.txt": "2007_000000 cat\n"},
        r"train_cls\.txt:1: expected NAME c1 c2 …",
    ),
    "memory of another task": (
        {"train_cls.txt": ONE, "memory.json": "{}"},
        r"memory\.json: has no step_1, which task 2-1 needs",
    ),
    "damaged memory": (
        {"train_cls.txt": ONE, "memory.json": '{"step_1": []}'},
        r'memory\.json: expected {"step_1": {"memory_list"',
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_list_is_told_with_its_file(name: str, split: FileDataset, tmp_path: Path) -> None:
    files, told = WRONG[name]
    for file, content in files.items():
        if isinstance(content, str):
            (tmp_path / file).write_text(content)
        else:
            np.save(tmp_path / file, np.array(content))
    with pytest.raises(DataError, match=rf"^data\.image_lists: .*{told}"):
        read_image_lists(tmp_path, split, TASK, "overlap")


def test_a_missing_folder_is_told(split: FileDataset, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.image_lists: .*nosuch: no such folder"):
        read_image_lists(tmp_path / "nosuch", split, TASK, "overlap")


def test_places_in_the_whole_list_are_refused_for_a_part_of_it(
    root: Path, split: FileDataset, tmp_path: Path
) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(split.ids[:4]))
    write_indices(tmp_path, split, [[split.ids[0]], [split.ids[1]]])
    fields = (f"data.root={root}", f"data.train_ids={tmp_path / 'ids.txt'}", f"data.image_lists={tmp_path}")
    with pytest.raises(DataError, match=r"train-0\.npy: .* of which data\.train_ids takes a part"):
        prepare(tiny(tmp_path, "part", *FIELDS, *fields), WORKER)


def test_lists_of_another_task_are_refused_and_images_without_a_class_of_the_step_are_counted(
    root: Path, split: FileDataset, tmp_path: Path
) -> None:
    steps = computed(split, "overlap")
    without = next(i for i in split.ids if i not in steps[1])
    lists = tmp_path / "lists"
    lists.mkdir()
    write_text(lists, split, [steps[0], [*steps[1], without]])
    fields = (*FIELDS, f"data.root={root}", f"data.image_lists={lists}")
    (told,) = prepare(tiny(tmp_path, "one", *fields), WORKER).remarks
    assert told == (
        f"data.image_lists: 1 of {len(steps[1]) + 1} images of step 1 show no class of it, such as '{without}'"
    )
    write_text(lists, split, [steps[0], [without]])
    with pytest.raises(DataError, match=r"none of the 1 images of step 1 shows a class of it \(dog\)"):
        prepare(tiny(tmp_path, "all", *fields), WORKER)
