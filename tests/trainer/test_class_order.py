"""Which ids a data set gives its classes changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.data import Mask, write_folder, write_mask
from tests.support.training import SEGMENTER, WORKER, assert_equal_states, tiny, train, weights
from trainer.plan import Plan, prepare


def permuted_folder(folder: Path, order: list[int]) -> Path:
    """The shapes data set in files, data set id i written as order[i]."""
    source = tiny(folder, "source")
    plan: Plan = prepare(source, WORKER)
    table = np.array(order, dtype=np.uint8)
    splits: list[dict[str, Mask]] = []
    for split in (plan.train, plan.val):
        splits.append({image_id: split.read(image_id)[1] for image_id in split.ids})
    names = [""] * len(order)
    for old, new in enumerate(order):
        names[new] = plan.train.classes[old]
    root = folder / "data"
    # Images are painted after the masks as they are, then the masks get their other ids.
    write_folder(root, names, splits[0], splits[1], suffix=".png")
    for name, masks in zip(("train", "val"), splits, strict=True):
        for image_id, mask in masks.items():
            write_mask(root / "masks" / name / f"{image_id}.png", table[mask])
    return root


@pytest.mark.parametrize("model", [(), SEGMENTER], ids=["deeplabv3", "segmenter"])
def test_other_data_set_ids_of_the_same_classes_change_nothing(
    tmp_path: Path, model: tuple[str, ...]
) -> None:
    outcomes = []
    for name, order in (("plain", [0, 1, 2, 3, 4, 5, 6]), ("permuted", [0, 4, 6, 1, 5, 2, 3])):
        (tmp_path / name).mkdir()
        root = permuted_folder(tmp_path / name, order)
        data = ["data.name=folder", f"data.root={root}", "method.threshold=0.4"]
        config = tiny(tmp_path / name, "run", *data, *model, "task=[[ring, disc], [star], [cross, triangle]]")
        outcomes.append((config, train(config)))
    (plain, plain_results), (permuted, permuted_results) = outcomes
    for step in range(3):
        assert_equal_states(weights(plain, step), weights(permuted, step))
        ours, theirs = (results["steps"][step] for results in (plain_results, permuted_results))
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_class_order_of_ids_is_the_task_of_its_names(tmp_path: Path) -> None:
    by_ids = prepare(tiny(tmp_path, "ids", "task=4-1", "class_order=[0, 5, 1, 6, 4, 3, 2]"), WORKER)
    names = "[[ring, disc, star, cross], [triangle], [diamond]]"
    by_names = prepare(tiny(tmp_path, "names", f"task={names}"), WORKER)
    assert by_ids.task.class_ids == by_names.task.class_ids
    assert by_ids.task.steps == by_names.task.steps
    assert by_ids.image_ids == by_names.image_ids
