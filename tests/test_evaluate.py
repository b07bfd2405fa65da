"""trainer/evaluate.py: the confusion matrix against a slow count, with a model whose answers are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from datasets import SegmentationDataset
from datasets.files import UInt8Array
from datasets.incremental import ValidationDataset
from datasets.transforms import EvaluateTransform
from models import SegOutput
from tests.cli import write_tiny_config
from trainer.evaluate import draw_panel, evaluate, predict
from utils.config import Config, load_config
from utils.distributed import Worker

NUM_CLASSES = 4
CROP = 12
CPU = Worker(torch.device("cpu"))


class ReadsTheAnswer(nn.Module):
    """Predicts the class that the red of a pixel says, after a hundred."""

    def forward(self, images: Tensor) -> SegOutput:
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


def make_config(folder: Path, mode: str, batch_size: int = 2) -> Config:
    overrides = [f"evaluate.mode={mode}", f"evaluate.batch_size={batch_size}", f"train.crop_size={CROP}"]
    return load_config(write_tiny_config(folder), overrides)


def confusion_of(samples: dict[str, tuple[UInt8Array, UInt8Array]], config: Config) -> npt.NDArray[np.int64]:
    dataset = ValidationDataset(
        cast(SegmentationDataset, Stored(samples)),
        list(samples),
        np.arange(256, dtype=np.uint8),
        EvaluateTransform(config.train.crop_size, config.evaluate.mode),
    )
    return evaluate(ReadsTheAnswer(), dataset, NUM_CLASSES, config, CPU)


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


def test_whole_images_of_different_sizes(tmp_path: Path) -> None:
    samples = random_samples((12, 20), (16, 12), (12, 12))
    matrix = confusion_of(samples, make_config(tmp_path, "whole"))
    np.testing.assert_array_equal(matrix, count(list(samples.values())))


def test_whole_images_count_at_the_size_of_the_label(tmp_path: Path) -> None:
    # One class an image: its prediction is the same at any size.
    samples = {
        key: (np.full_like(prediction, int(key)), label)
        for key, (prediction, label) in random_samples((30, 47), (24, 25), (7, 5), (13, 40)).items()
    }
    matrix = confusion_of(samples, make_config(tmp_path, "whole"))
    np.testing.assert_array_equal(matrix, count(list(samples.values())))


def test_rows_are_ground_truth_and_ignored_pixels_are_left_out(tmp_path: Path) -> None:
    label = np.full((12, 12), 255, dtype=np.uint8)
    label[0, :5], label[1, :3] = 1, 2
    matrix = confusion_of({"0": (np.full_like(label, 3), label)}, make_config(tmp_path, "whole"))
    expected = np.zeros((4, 4), dtype=np.int64)
    expected[1, 3], expected[2, 3] = 5, 3
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_predictions_are_class_ids_at_the_asked_size(amp: str) -> None:
    images = torch.full((1, 3, 4, 6), 102, dtype=torch.uint8)
    images[..., 3:] = 101
    prediction = predict(ReadsTheAnswer(), images, torch.Size((8, 12)), amp)
    assert prediction.dtype == torch.int64
    assert torch.equal(prediction[0, 0], torch.tensor([2] * 6 + [1] * 6))


def test_a_panel_shows_image_label_and_prediction_in_the_palette(tmp_path: Path) -> None:
    config = make_config(tmp_path, "whole")
    image = torch.full((3, 12, 12), 103, dtype=torch.uint8)
    label = torch.zeros(12, 12, dtype=torch.uint8)
    label[0, 0], label[0, 1] = 1, 255
    colours = [(0, 0, 0), (10, 20, 30), (1, 1, 1), (40, 50, 60)]
    panel = draw_panel(ReadsTheAnswer(), image, label, colours, config, CPU.device)
    assert panel.shape == (12, 36, 3)
    assert panel.dtype == np.uint8
    assert (panel[:, :12] == 103).all()
    assert panel[0, 12].tolist() == [10, 20, 30]
    assert panel[0, 13].tolist() not in [list(colour) for colour in colours], (
        "ignored pixels have a colour of their own"
    )
    assert (panel[1:, 12:24] == 0).all()
    assert (panel[:, 24:] == (40, 50, 60)).all()
