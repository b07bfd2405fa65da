"""trainer/validation.py: the confusion matrix against a slow count, with a model whose answers are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from datasets.incremental import ValidationDataset, evaluation_table
from datasets.source import SegmentationDataset
from datasets.tasks import build_task
from datasets.transforms import EvaluateTransform
from models import ModelOptions, SegmentationModel, SegOutput
from models.base import Stages
from tests.support.cli import write_tiny_config
from trainer.config import Config, load_config
from trainer.inference import images_at_once, predict
from trainer.validation import evaluate
from utils.distributed import Worker
from utils.images import UInt8Array

NUM_CLASSES = 4
CROP = 12
CPU = Worker(torch.device("cpu"))


class ReadsTheAnswer(SegmentationModel):
    """Predicts the class that the red of a pixel says, after a hundred; remembers its batches."""

    def __init__(self) -> None:
        super().__init__([1], ModelOptions(backbone="test_resnet"))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor, with_stages: Stages = False, full_size: bool = True) -> SegOutput:
        self.shapes.append(tuple(images.shape))
        classes = torch.arange(NUM_CLASSES)[:, None, None]
        logits = -(images[:, :1].float() - 100 - classes).square()
        return SegOutput(logits, logits, logits, torch.zeros(NUM_CLASSES, 1), None)


@dataclass
class Stored:
    """Predictions and labels in memory, as a data set."""

    samples: dict[str, tuple[UInt8Array, UInt8Array]]

    def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
        prediction, label = self.samples[image_id]
        return (100 + prediction)[:, :, None].repeat(3, axis=2), label


def random_samples(*sizes: tuple[int, int]) -> dict[str, tuple[UInt8Array, UInt8Array]]:
    """Random predictions and labels, a fifth of the labels 255."""
    rng = np.random.default_rng(0)
    choices = np.array([0, 1, 2, 3, 255])
    return {
        str(i): (
            rng.integers(0, NUM_CLASSES, size).astype(np.uint8),
            rng.choice(choices, size).astype(np.uint8),
        )
        for i, size in enumerate(sizes)
    }


class SeesTheWhole(ReadsTheAnswer):
    """Takes a pixel for what is left of it and below, so that it matters which window shows it."""

    def forward(self, images: Tensor, with_stages: Stages = False, full_size: bool = True) -> SegOutput:
        sums = images.float().cumsum(dim=3).flip(2).cumsum(dim=2).flip(2)
        return super().forward(100 + (sums % 97) / 24)


def make_config(folder: Path, mode: str, batch_size: int = 2, *overrides: str) -> Config:
    fields = [f"evaluate.mode={mode}", f"evaluate.batch_size={batch_size}", f"train.crop_size={CROP}"]
    return load_config(write_tiny_config(folder), [*fields, *overrides])


def confusion_of(
    samples: dict[str, tuple[UInt8Array, UInt8Array]],
    config: Config,
    model: SegmentationModel | None = None,
    table: UInt8Array | None = None,
) -> npt.NDArray[np.int64]:
    dataset = ValidationDataset(
        cast(SegmentationDataset, Stored(samples)),
        list(samples),
        np.arange(256, dtype=np.uint8) if table is None else table,
        EvaluateTransform(config.train.crop_size, config.evaluate.mode),
    )
    return evaluate(model or ReadsTheAnswer(), dataset, NUM_CLASSES, config, CPU)


def count(pairs: list[tuple[UInt8Array, UInt8Array]]) -> npt.NDArray[np.int64]:
    """The confusion matrix, pixel by pixel, from pairs of prediction and label."""
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64)
    for prediction, label in pairs:
        for predicted, true in zip(prediction.flatten(), label.flatten(), strict=True):
            if true != 255:
                matrix[true, predicted] += 1
    return matrix


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_centre_crops_of_images_of_different_sizes(tmp_path: Path, batch_size: int) -> None:
    # Short sides at the crop: nothing is resized, and the crops are known.
    samples = random_samples((12, 20), (16, 12), (12, 12), (30, 12), (12, 14))
    crops = [np.s_[:, 4:16], np.s_[2:14, :], np.s_[:, :], np.s_[9:21, :], np.s_[:, 1:13]]
    expected = count([(p[crop], y[crop]) for (p, y), crop in zip(samples.values(), crops, strict=True)])
    matrix = confusion_of(samples, make_config(tmp_path, "center_crop", batch_size))
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("mode", ["whole", "sliding"])
@pytest.mark.parametrize("flip", ["true", "false"])
@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_of_different_sizes(tmp_path: Path, mode: str, flip: str, workers: int) -> None:
    samples = random_samples((12, 20), (16, 12), (12, 12), (12, 20))
    config = make_config(tmp_path, mode, 3, f"evaluate.flip={flip}", f"data.num_workers={workers}")
    matrix = confusion_of(samples, config)
    np.testing.assert_array_equal(matrix, count(list(samples.values())))


@pytest.mark.parametrize("mode", ["whole", "sliding"])
@pytest.mark.parametrize("scales", ["[1.0]", "[0.5, 1.0, 1.5]"])
def test_whole_images_count_at_the_size_of_the_label(tmp_path: Path, mode: str, scales: str) -> None:
    # One class an image: its prediction is the same at any size.
    samples = {
        key: (np.full_like(prediction, int(key)), label)
        for key, (prediction, label) in random_samples((30, 47), (24, 25), (7, 5), (13, 40)).items()
    }
    matrix = confusion_of(samples, make_config(tmp_path, mode, 2, f"evaluate.scales={scales}"))
    np.testing.assert_array_equal(matrix, count(list(samples.values())))


@pytest.mark.parametrize("mode", ["center_crop", "whole", "sliding"])
@pytest.mark.parametrize("views", [[], ["evaluate.flip=true", "evaluate.scales=[0.75, 1.5]"]])
def test_the_batch_size_changes_nothing(tmp_path: Path, mode: str, views: list[str]) -> None:
    # Of the shapes that share a batch of five, some recur; the fourth has the shape of the first at another size.
    samples = random_samples((12, 20), (16, 12), (12, 20), (24, 40), (13, 9), (40, 24), (12, 20))
    alone, together = (
        confusion_of(samples, make_config(tmp_path, mode, batch_size, *views), SeesTheWhole())
        for batch_size in (1, 5)
    )
    np.testing.assert_array_equal(alone, together)
    assert (alone.sum(axis=0) > 0).sum() > 2


def test_images_of_one_shape_share_a_forward_pass_whatever_the_size_of_their_labels(tmp_path: Path) -> None:
    samples, model = (
        random_samples((12, 20), (16, 12), (12, 20), (24, 40), (13, 12), (12, 20)),
        ReadsTheAnswer(),
    )
    confusion_of(samples, make_config(tmp_path, "whole", 5), model)
    assert model.shapes == [(3, 3, 12, 20), (1, 3, 16, 12), (1, 3, 13, 12), (1, 3, 12, 20)]


def test_windows_of_images_of_one_shape_share_forward_passes(tmp_path: Path) -> None:
    samples, model = random_samples((12, 20), (12, 20), (12, 12)), ReadsTheAnswer()
    confusion_of(samples, make_config(tmp_path, "sliding", 3), model)
    # Two windows of each of the first two images, in threes; the third image is its own window.
    assert model.shapes == [(3, 3, 12, 12), (1, 3, 12, 12), (1, 3, 12, 12)]


def test_scores_of_large_images_are_kept_of_one_at_a_time(tmp_path: Path) -> None:
    config = make_config(tmp_path, "sliding", 3)
    assert images_at_once(torch.Size((12, 20)), config) == 2
    assert images_at_once(torch.Size((12, 36)), config) == 1
    samples, model = random_samples((12, 36), (12, 36)), ReadsTheAnswer()
    confusion_of(samples, config, model)
    # Four windows of each, in threes.
    assert model.shapes == [(3, 3, 12, 12), (1, 3, 12, 12), (3, 3, 12, 12), (1, 3, 12, 12)]


def test_images_at_their_own_size_share_a_pass_as_far_as_a_batch_of_crops_has_pixels(tmp_path: Path) -> None:
    config = make_config(tmp_path, "whole", 4, "evaluate.short_side=own")
    samples, model = random_samples(*[(12, 24)] * 3), ReadsTheAnswer()
    matrix = confusion_of(samples, config, model)
    assert model.shapes == [(2, 3, 12, 24), (1, 3, 12, 24)]
    np.testing.assert_array_equal(matrix, count(list(samples.values())))


@pytest.mark.parametrize("mode", ["whole", "sliding"])
@pytest.mark.parametrize(
    ("future", "background", "expected"),
    [
        ("ignore", 0, {0: 0, 3: 1, 1: 2, 2: 3, 4: 255, 255: 255}),
        ("background", 0, {0: 0, 3: 1, 1: 2, 2: 3, 4: 0, 255: 255}),
        ("ignore", 255, {0: 255, 3: 1, 1: 2, 2: 3, 4: 255, 255: 255}),
    ],
)
def test_classes_to_come_and_a_void_background(
    tmp_path: Path, mode: str, future: str, background: int, expected: dict[int, int]
) -> None:
    task = build_task("2-1", ["other", "a", "b", "c", "d"], [0, 3, 1, 2, 4])
    rng = np.random.default_rng(1)
    samples = {
        str(i): (
            rng.integers(0, NUM_CLASSES, size).astype(np.uint8),
            rng.choice(np.array([*expected], dtype=np.uint8), size),
        )
        for i, size in enumerate([(12, 20), (16, 12), (12, 20)])
    }
    table = evaluation_table(task, task.steps[1], future, background)
    matrix = confusion_of(samples, make_config(tmp_path, mode, 3, "evaluate.flip=true"), table=table)
    labels = [np.vectorize(expected.__getitem__)(label).astype(np.uint8) for _, label in samples.values()]
    pairs = [(prediction, label) for (prediction, _), label in zip(samples.values(), labels, strict=True)]
    np.testing.assert_array_equal(matrix, count(pairs))


def test_rows_are_ground_truth_and_ignored_pixels_are_left_out(tmp_path: Path) -> None:
    label = np.full((12, 12), 255, dtype=np.uint8)
    label[0, :5], label[1, :3] = 1, 2
    matrix = confusion_of({"0": (np.full_like(label, 3), label)}, make_config(tmp_path, "whole"))
    expected = np.zeros((4, 4), dtype=np.int64)
    expected[1, 3], expected[2, 3] = 5, 3
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_predictions_are_class_ids_at_the_asked_size(tmp_path: Path, amp: str) -> None:
    images = torch.full((1, 3, 4, 6), 102, dtype=torch.uint8)
    images[..., 3:] = 101
    config = make_config(tmp_path, "whole", 1, f"train.amp={amp}")
    (prediction,) = predict(ReadsTheAnswer(), images, [torch.Size((8, 12))], config)
    assert prediction.dtype == torch.int64
    assert torch.equal(prediction, torch.tensor([[2] * 6 + [1] * 6] * 8))
