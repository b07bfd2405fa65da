"""datasets/rare.py: pixels counted, weights and repetitions that follow from shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import folder
from datasets.incremental import StepDataset
from datasets.rare import balanced_weights, count_labels, count_pixels, repeat_images
from datasets.transforms import TrainTransform
from tests.support.data import stripes, write_folder


def test_pixels_are_counted_as_a_step_sees_them(tmp_path: Path) -> None:
    write_folder(
        tmp_path, ["pear", "kiwi"], {"a": stripes(0, 1, 2, 255), "b": stripes(1), "c": stripes(2)}, {}
    )
    dataset = folder.open_split(tmp_path, "train")
    counts = count_pixels(dataset, ["a", "b"], 0, "")
    assert counts[:, [0, 1, 2, 255]].tolist() == [[64, 64, 64, 64], [0, 256, 0, 0]]
    own, seen = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    own[[2, 255]], seen[[1, 2, 255]] = [2, 255], [1, 2, 255]
    transform = TrainTransform(8, 1.0, 1.0, (0, 0, 0), 255)
    step = StepDataset(dataset, ["a", "b", "c"], own, transform, 0, 1, ["b"], seen)
    assert count_labels(step, 0)[:3].tolist() == [128, 256, 64 + 256]
    assert count_labels(step, 0).sum() == 3 * 256 - 64


def test_balanced_weights_are_roots_of_how_much_rarer_a_class_is() -> None:
    counts = np.array([9936, 64, 0, 2484])
    assert balanced_weights(counts, [1, 2, 3]) == pytest.approx({1: (9936 / 64) ** 0.5, 2: 1.0, 3: 2.0})


def test_images_of_a_class_below_the_threshold_are_repeated() -> None:
    ids = [f"i{i}" for i in range(100)]
    shown = {i: {1} | ({2} if n < 4 else set()) | ({3} if n < 1 else set()) for n, i in enumerate(ids)}
    repeats = repeat_images(shown, ids, [1, 2, 3], 0.16)
    # √(0.16 / 0.04) = 2 times; √(0.16 / 0.01) = 4 times; class 1 is in every image.
    assert repeats == [4, 2, 2, 2] + [1] * 96
    assert repeat_images(shown, ids, [1], 0.16) == [1] * 100
    halves = repeat_images(shown, ids, [2], 0.09)  # 1.5 times: some once, some twice, always the same
    assert set(halves[:4]) <= {1, 2}
    assert halves == repeat_images(shown, ids, [2], 0.09)
    many = {i: {1} if n < 2500 else {2} for n, i in enumerate(map(str, range(10000)))}
    assert sum(repeat_images(many, [*many], [1], 0.5625)) == pytest.approx(10000 + 1250, abs=100)
