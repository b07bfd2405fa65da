"""Held-out images are not trained on, and are scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.selection import split_holdout
from tests.support.training import WORKER, tiny, train
from trainer.checkpoint import checkpoint_path, load_checkpoint, restore_model
from trainer.plan import prepare


def test_a_holdout_is_the_rounded_fraction_and_with_the_rest_makes_the_whole_in_order() -> None:
    ids = [f"img{i}" for i in range(34)]
    kept, held_out = split_holdout(ids, 0.1)
    assert len(held_out) == 3
    assert sorted([*kept, *held_out]) == sorted(ids)
    assert kept == [i for i in ids if i in set(kept)]
    assert split_holdout(ids[::-1], 0.1) == (kept[::-1], held_out[::-1])
    assert split_holdout(ids, 0.0) == (ids, [])
    assert len(split_holdout(ids[:3], 0.01)[1]) == 1


def test_an_image_of_two_steps_is_mostly_held_out_in_both_or_in_none() -> None:
    ids = [f"img{i}" for i in range(1000)]
    first, second = set(split_holdout(ids[:800], 0.1)[1]), set(split_holdout(ids[200:], 0.1)[1])
    shared = set(ids[200:800])
    assert len((first & shared) ^ (second & shared)) < 0.3 * len((first | second) & shared)


def test_held_out_images_are_not_trained_on_and_are_scored(tmp_path: Path) -> None:
    config = tiny(tmp_path, "held", "val_fraction=0.25", "method=finetune")
    plan = prepare(config, WORKER)
    results = train(config)
    for step in plan.task.steps:
        trained, held_out = plan.image_ids[step.index], plan.holdout_ids[step.index]
        assert not set(trained) & set(held_out)
        for folder, ids in (("train_images", trained), ("holdout_images", held_out)):
            assert (config.run_dir / folder / f"step_{step.index}.txt").read_text().splitlines() == list(ids)
        entry = results["steps"][step.index]
        assert entry["num_train_images"] == len(trained)
        assert entry["holdout"]["num_images"] == len(held_out) > 0
        assert set(entry["holdout"]["classes"]) <= set(plan.task.new_class_names(step))
    without = prepare(tiny(tmp_path, "whole", "method=finetune"), WORKER)
    for step in plan.task.steps:
        both = {*plan.image_ids[step.index], *plan.holdout_ids[step.index]}
        assert both == set(without.image_ids[step.index])


def test_the_score_on_held_out_images_is_the_iou_of_the_classes_that_the_step_labels(tmp_path: Path) -> None:
    config = tiny(tmp_path, "score", "val_fraction=0.25", "method=finetune", "train.num_epochs=3")
    entry = train(config)["steps"][1]["holdout"]
    plan = prepare(config, WORKER)
    step = plan.task.steps[1]
    model = restore_model(config, load_checkpoint(checkpoint_path(config.run_dir, 1))).eval()
    # Ids are those of learning order: ring, disc | star, cross; only the last two are labelled.
    contiguous = {6: 3, 4: 4}
    found, expected = np.zeros((2, 5)), {}
    for image_id in plan.holdout_ids[1]:
        image, label = plan.train.read(image_id)
        with torch.inference_mode():
            prediction = model(torch.tensor(image).permute(2, 0, 1)[None]).logits.argmax(dim=1)[0].numpy()
        truth = np.vectorize(lambda i: contiguous.get(int(i), 0))(label)
        for c in (3, 4):
            found[0, c] += ((prediction == c) & (truth == c)).sum()
            found[1, c] += ((prediction == c) | (truth == c)).sum()
    for c in (3, 4):
        if found[1, c]:
            expected[plan.task.class_names[c]] = found[0, c] / found[1, c]
    assert step.new_classes == (3, 4)
    assert entry["classes"] == list(expected)
    assert entry["miou"] == pytest.approx(np.mean(list(expected.values())))


def test_a_holdout_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, "none", "val_fraction=0.99")
    with pytest.raises(ValueError, match=r"val_fraction: 0\.99 holds out all \d+ training images of step 0"):
        prepare(config, WORKER)
