"""datasets/incremental.py: which labels and images a step sees, and what its samples look like."""

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.incremental import (
    StepDataset,
    ValidationDataset,
    evaluation_table,
    make_generator,
    select_images,
    select_training_images,
    training_table,
)
from datasets.source import SegmentationDataset
from datasets.tasks import build_task
from datasets.transforms import EvaluateTransform, TrainTransform
from trainer.sampling import TrainSampler
from utils.images import UInt8Array

CLASSES = ("background", "a", "b", "c", "d")
# Contiguous ids: c -> 1, a -> 2 in the base step, d -> 3, b -> 4.
TASK = build_task("2-1", CLASSES, class_order=[0, 3, 1, 4, 2])
SUBSET = build_task([["d"], ["b"]], CLASSES)
SHOWN = {
    "i0": {0, 3},
    "i1": {0, 3, 4, 255},
    "i2": {4},
    "i3": {0, 2, 4},
    "i4": {1, 2},
    "i5": {0},
}


@dataclass
class Noise:
    """Images of noise, each its own, as a data set in memory."""

    num_images: int = 6
    ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = tuple(str(i) for i in range(self.num_images))

    def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
        rng = np.random.default_rng(int(image_id))
        image = rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)
        return image, rng.integers(0, 5, (20, 24)).astype(np.uint8)


def noise(num_images: int = 6) -> SegmentationDataset:
    return cast(SegmentationDataset, Noise(num_images))


def entries(table: UInt8Array, *dataset_ids: int) -> list[int]:
    return [int(table[i]) for i in dataset_ids]


@pytest.mark.parametrize(
    ("step", "train_on", "expected"),
    [
        (0, "step", [0, 2, 0, 1, 0, 255]),
        (1, "step", [0, 0, 0, 0, 3, 255]),
        (2, "step", [0, 0, 4, 0, 0, 255]),
        (0, "seen", [0, 2, 0, 1, 0, 255]),
        (1, "seen", [0, 2, 0, 1, 3, 255]),
        (2, "seen", [0, 2, 4, 1, 3, 255]),
    ],
)
def test_training_labels_by_hand(step: int, train_on: str, expected: list[int]) -> None:
    table = training_table(TASK, TASK.steps[step], train_on)
    assert table.dtype == np.uint8
    assert entries(table, 0, 1, 2, 3, 4, 255) == expected
    void_as_background = training_table(TASK, TASK.steps[step], train_on, void_label="background")
    assert entries(void_as_background, 0, 1, 2, 3, 4, 255) == [*expected[:-1], 0]


@pytest.mark.parametrize(
    ("step", "future", "background", "expected"),
    [
        (0, "ignore", 0, [0, 2, 255, 1, 255, 255]),
        (1, "ignore", 0, [0, 2, 255, 1, 3, 255]),
        (2, "ignore", 0, [0, 2, 4, 1, 3, 255]),
        (0, "background", 0, [0, 2, 0, 1, 0, 255]),
        (1, "background", 0, [0, 2, 0, 1, 3, 255]),
        (1, "ignore", 255, [255, 2, 255, 1, 3, 255]),
        (1, "background", 255, [255, 2, 0, 1, 3, 255]),
        (1, "background", 4, [4, 2, 0, 1, 3, 255]),
    ],
)
def test_evaluation_labels_by_hand(step: int, future: str, background: int, expected: list[int]) -> None:
    table = evaluation_table(TASK, TASK.steps[step], future, background)
    assert entries(table, 0, 1, 2, 3, 4, 255) == expected


@pytest.mark.parametrize("background", [0, 255])
def test_classes_outside_a_subset_task_are_background_everywhere(background: int) -> None:
    first, second = SUBSET.steps
    assert entries(training_table(SUBSET, first, "step"), 0, 1, 2, 3, 4) == [0, 0, 0, 0, 1]
    assert entries(training_table(SUBSET, second, "step"), 0, 1, 2, 3, 4) == [0, 0, 2, 0, 0]
    assert entries(training_table(SUBSET, second, "seen"), 0, 1, 2, 3, 4) == [0, 0, 2, 0, 1]
    assert entries(evaluation_table(SUBSET, first, "ignore", background), 1, 2, 3, 4) == [0, 255, 0, 1]
    assert entries(evaluation_table(SUBSET, second, "ignore", background), 1, 2, 3, 4) == [0, 2, 0, 1]


def test_a_permuted_class_order_permutes_the_labels_alike() -> None:
    default = build_task("4-1", CLASSES)
    permuted = build_task("4-1", CLASSES, class_order=[0, 4, 2, 1, 3])
    label = np.random.default_rng(0).choice([0, 1, 2, 3, 4, 255], size=(9, 9))
    for train_on in ("step", "seen"):
        ours = training_table(default, default.steps[0], train_on)[label]
        theirs = training_table(permuted, permuted.steps[0], train_on)[label]
        back = np.arange(256)
        back[: len(permuted.class_ids)] = permuted.class_ids
        np.testing.assert_array_equal(back[theirs], ours)
    for class_id, name in zip(permuted.class_ids, permuted.class_names, strict=True):
        assert CLASSES[class_id] == name


def test_own_images_are_those_of_the_step_and_seen_ones_the_union_so_far() -> None:
    own = [select_training_images(SHOWN, TASK, step, "overlap", "step") for step in TASK.steps]
    assert own == [["i0", "i1", "i4"], ["i1", "i2", "i3"], ["i3", "i4"]]
    seen = [select_training_images(SHOWN, TASK, step, "overlap", "seen") for step in TASK.steps]
    assert seen == [["i0", "i1", "i4"], ["i0", "i1", "i2", "i3", "i4"], ["i0", "i1", "i2", "i3", "i4"]]


def test_disjoint_seen_images_are_the_union_of_the_steps_own() -> None:
    own = [select_training_images(SHOWN, TASK, step, "disjoint", "step") for step in TASK.steps]
    assert own == [["i0"], ["i1", "i2"], ["i3", "i4"]]
    seen = [select_training_images(SHOWN, TASK, step, "disjoint", "seen") for step in TASK.steps]
    assert seen == [["i0"], ["i0", "i1", "i2"], ["i0", "i1", "i2", "i3", "i4"]]


@pytest.mark.parametrize("setting", ["overlap", "disjoint", "partitioned"])
def test_own_images_are_what_select_images_answers(setting: str) -> None:
    for step in TASK.steps:
        own = select_training_images(SHOWN, TASK, step, setting, "step")
        assert own == select_images(SHOWN, TASK, step.index, setting)


def test_generators_of_different_keys_differ_and_of_equal_keys_agree() -> None:
    keys = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]
    draws = [tuple(torch.rand(3, generator=make_generator(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws[4] == tuple(torch.rand(3, generator=make_generator(1, 0, 0, 0)).tolist())


def step_dataset(seed: int = 0, step: int = 1) -> StepDataset:
    table = np.arange(256, dtype=np.uint8)
    transform = TrainTransform(16, 0.5, 2.0, (0.0, 0.0, 0.0))
    return StepDataset(noise(), noise().ids, table, transform, seed, step)


def test_a_sample_depends_on_seed_step_epoch_and_index_only() -> None:
    dataset = step_dataset()
    image, label, _ = dataset[(2, 3)]
    torch.manual_seed(99)
    for key in [(0, 0), (5, 3), (2, 4)]:
        assert not torch.equal(dataset[key][0], image)
    again = dataset[(2, 3)]
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], label)
    for other in (step_dataset(seed=1), step_dataset(step=2)):
        assert not torch.equal(other[(2, 3)][0], image)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    def load(num_workers: int) -> torch.Tensor:
        order = TrainSampler(6, 2, 2, seed=0, step=1)
        return torch.cat(
            [x for x, _, _ in DataLoader(step_dataset(), batch_sampler=order, num_workers=num_workers)]
        )

    assert torch.equal(load(0), load(2))


def test_labels_go_through_the_table_before_they_are_padded() -> None:
    table = np.full(256, 9, dtype=np.uint8)
    transform = TrainTransform(16, 0.5, 0.6, (0.0, 0.0, 0.0))
    _, label, _ = StepDataset(noise(), noise().ids, table, transform, seed=0, step=0)[(0, 0)]
    assert label.unique().tolist() == [9, 255]


def test_validation_reads_its_share_with_the_evaluation_labels() -> None:
    table = np.arange(256, dtype=np.uint8)
    table[4] = 255
    dataset = ValidationDataset(noise(), ("1", "4"), table, EvaluateTransform(20, "whole"))
    assert len(dataset) == 2
    image, label = noise().read("4")
    x, y, _ = dataset[1]
    np.testing.assert_array_equal(x.permute(1, 2, 0).numpy(), image)
    np.testing.assert_array_equal(y.numpy(), np.where(label == 4, 255, label))
