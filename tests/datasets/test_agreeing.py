"""data.on_error=skip: what stands in for an image that cannot be read, and how many may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import folder
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset
from datasets.incremental import StepDataset, ValidationDataset
from datasets.transforms import EvaluateTransform, TrainTransform
from datasets.unreadable import TooManySkippedError, Unreadable
from tests.support.data import cut_short, stripes, write_folder
from trainer.sampling import TrainSampler
from utils.errors import DataError

CLASSES = ["pear", "kiwi"]
IDENTITY = np.arange(256, dtype=np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> FileDataset:
    """Eight images; 2 and 3 are cut short, 7 is gone."""
    masks = {f"i{i}": stripes(0, 1 + i % 2, height=20, width=24) for i in range(8)}
    root = write_folder(tmp_path, CLASSES, masks, masks)
    dataset = folder.open_split(root, "train")
    cut_short(root / "images" / "train" / "i2.jpg")
    cut_short(root / "masks" / "train" / "i3.png")
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
    assert problems.endswith("i7.jpg: no such file or folder; correct the path, or mend the link")


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
        (99, 1.0, False),
        (100, 1.0, True),  # nothing is left to train on
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
            unreadable.agree(lambda problems: [problems])
        assert "0.jpg: cut" in str(e.value)
    else:
        unreadable.agree(lambda problems: [problems])
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


def test_problems_of_all_processes_are_brought_together_sorted_and_count_once() -> None:
    unreadable = Unreadable("skip", 0.5, 4, "training of step 0")
    unreadable.add(["b.jpg: cut"])
    unreadable.agree(lambda own: [["c.jpg: cut", "b.jpg: cut"], own])
    assert list(unreadable.problems) == ["b.jpg: cut", "c.jpg: cut"]


def test_a_process_without_problems_ends_with_those_of_the_others() -> None:
    unreadable = Unreadable("skip", 0.25, 4, "training of step 0")
    with pytest.raises(TooManySkippedError, match=r"step 0: 2 of 4 images cannot be read \(50 %"):
        unreadable.agree(lambda own: [own, ["a.jpg: cut"], ["b.jpg: cut"]])
