"""trainer/validation.py: pixels of label 0 are void or background, as data set, config and papers have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from datasets.source import SegmentationDataset
from datasets.tasks import build_task
from tests.support.cli import write_tiny_config
from tests.trainer.test_validation import CPU, ReadsTheAnswer, Stored, count, make_config
from trainer.config import load_config
from trainer.data import make_task
from trainer.plan import Evaluation
from trainer.validation import Validation, validate
from utils.metrics import iou_per_class

CLASSES = ("other", "a", "b", "c", "d")
OPTIONS = {None: "null", True: "true", False: "false"}


@dataclass
class Labelled(Stored):
    """Predictions and labels of a data set that says what its label 0 is."""

    background_is_void: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.samples)

    @property
    def label_ids(self) -> frozenset[int]:
        return frozenset(range(5))


def validate_random(
    folder: Path, own: bool, option: bool | None
) -> tuple[Validation, dict[bool, npt.NDArray[np.int64]]]:
    """Return the validation of random predictions, and pixel counts without label 0 (True) and with it (False)."""
    rng = np.random.default_rng(2)
    labels = [0, 0, 1, 2, 3, 4, 255]
    samples = {
        str(i): (rng.integers(0, 4, (12, 20)).astype(np.uint8), rng.choice(labels, (12, 20)).astype(np.uint8))
        for i in range(3)
    }
    # 'd' is left out of the task: background everywhere, also where label 0 is void.
    task = build_task([["a", "b", "c"]], CLASSES)
    new_id = task.remap_table()
    expected = {}
    for is_void in (True, False):
        pairs = [
            (prediction, np.where(is_void & (label == 0), 255, new_id[label]).astype(np.uint8))
            for prediction, label in samples.values()
        ]
        expected[is_void] = count(pairs)
    config = make_config(folder, "whole", 2, f"evaluate.void_background={OPTIONS[option]}")
    val = cast(SegmentationDataset, Labelled(samples, own))
    return validate(Evaluation(config, task, val), task.steps[0], ReadsTheAnswer(), CPU), expected


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("option", [None, False, True])
def test_label_0_counts_as_the_config_says_and_for_each_paper_as_its_code_has_it(
    tmp_path: Path, own: bool, option: bool | None
) -> None:
    found, expected = validate_random(tmp_path, own, option)
    assert expected[True][0].sum() > 0
    np.testing.assert_array_equal(found.confusion, expected[own if option is None else option])
    np.testing.assert_array_equal(found.iou, iou_per_class(found.confusion))
    np.testing.assert_array_equal(found.iou_of["mib"], iou_per_class(expected[own]))
    for convention in ("plop", "mbs"):
        np.testing.assert_array_equal(found.iou_of[convention], iou_per_class(expected[False]))


def test_a_void_background_has_an_iou_for_those_only_who_count_it(tmp_path: Path) -> None:
    class Four(Labelled):
        label_ids = property(lambda _: frozenset(range(4)))

    label = np.array([[0, 0, 1, 2, 3] * 4] * 12, dtype=np.uint8)
    prediction = np.where(label == 3, 0, label).astype(np.uint8)
    prediction[:6][label[:6] == 0] = 1
    config = make_config(tmp_path, "whole")
    val = cast(SegmentationDataset, Four({"x": (prediction, label)}, True))
    task = build_task([["a", "b", "c"]], CLASSES[:4])
    found = validate(Evaluation(config, task, val), task.steps[0], ReadsTheAnswer(), CPU)
    # Of 96 pixels labelled 0 half are taken for 'a', which has 48; 'c' (48) is taken for background.
    np.testing.assert_array_equal(found.iou, [np.nan, 1, 1, 0])
    np.testing.assert_array_equal(found.iou_of["mib"], found.iou)
    assert found.iou_of["plop"].tolist() == [48 / 144, 0.5, 1, 0]


def test_a_label_of_its_own_is_left_for_a_background_that_is_void(tmp_path: Path) -> None:
    config = load_config(write_tiny_config(tmp_path), ["task=offline", "evaluate.void_background=true"])
    assert len(make_task(config, [f"c{i}" for i in range(254)]).class_names) == 254
    with pytest.raises(ValueError, match=r"evaluate\.void_background: .* 255 classes"):
        make_task(config, [f"c{i}" for i in range(255)])
