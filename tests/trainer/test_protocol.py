"""Held-out images, the choice of a checkpoint, runs from another run's base step, and class orders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datasets.selection import split_holdout
from tests.support.cli import run_main, set_fields, write_tiny_config
from tests.support.data import Mask, write_folder, write_mask
from trainer.checkpoint import checkpoint_path, load_checkpoint, restore_model
from trainer.config import Config, load_config
from trainer.plan import Plan, prepare
from trainer.run import run
from trainer.score import BestWeights, validate
from utils.distributed import Worker

WORKER = Worker(torch.device("cpu"))
SEGMENTER = ("model.name=segmenter", "model.backbone=test_vit", "model.patch_size=8", "model.num_heads=2")


def tiny(folder: Path, log: str, *overrides: str) -> Config:
    return load_config(write_tiny_config(folder), overrides, log=log)


def train(config: Config) -> dict[str, Any]:
    """Run a config in this process and return its results.json."""
    run(prepare(config, WORKER), WORKER)
    results: dict[str, Any] = json.loads((config.run_dir / "results.json").read_text())
    return results


def weights(config: Config, step: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(checkpoint_path(config.run_dir, step))["model"]
    return state


def assert_equal_states(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# Held-out images


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


# The choice of a checkpoint


class Counter(torch.nn.Module):
    """A model whose one weight says how often it was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def test_the_best_weights_are_those_of_the_first_highest_score() -> None:
    scores = iter([0.2, 0.6, None, 0.6, 0.1])
    best, model = BestWeights(lambda _: next(scores)), Counter()
    for epoch in range(5):
        with torch.no_grad():
            model.weight.fill_(epoch)
        best.consider(model, epoch)  # type: ignore[arg-type]
    assert (best.epoch, best.best, best.state["weight"].item()) == (1, 0.6, 1)


def test_without_any_score_the_first_epoch_is_kept() -> None:
    best, model = BestWeights(lambda _: None), Counter()
    best.consider(model, 0)  # type: ignore[arg-type]
    assert best.epoch == 0
    assert best.state["weight"].item() == 0


@pytest.mark.parametrize("kind", ["best_holdout", "best_validation"])
def test_a_step_ends_with_the_epoch_that_scored_best(tmp_path: Path, kind: str) -> None:
    config = tiny(
        tmp_path, kind, f"checkpoint={kind}", "val_fraction=0.25", "train.num_epochs=4", "train.lr_base=0.05"
    )
    results = train(config)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    for entry in results["steps"]:
        scores = [x["score"] for x in lines if x["step"] == entry["step"] and "score" in x]
        assert len(scores) == 4
        best = max(range(4), key=lambda epoch: scores[epoch])
        assert entry["checkpoint"] == {"by": kind, "epoch": best, "score": scores[best]}
        # The weights that were kept give that score again.
        now = entry["holdout"]["miou"] if kind == "best_holdout" else entry["miou_all"]
        assert now == pytest.approx(scores[best])


def test_looking_at_the_epochs_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    drop_path = "model.drop_path=0.5"  # draws from the global random numbers
    plain = tiny(tmp_path, "plain", *SEGMENTER, drop_path, "train.num_epochs=3")
    looked = tiny(
        tmp_path, "looked", *SEGMENTER, drop_path, "train.num_epochs=3", "checkpoint=best_validation"
    )
    train(plain)
    train(looked)
    curves = [
        [
            x["loss"]
            for x in map(json.loads, (c.run_dir / "metrics.jsonl").open())
            if "loss" in x and x["step"] == 0
        ]
        for c in (plain, looked)
    ]
    assert len(curves[0]) == 9
    assert curves[0] == curves[1]


def test_best_holdout_without_held_out_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint: best_holdout needs .* val_fraction"):
        tiny(tmp_path, "x", "checkpoint=best_holdout")


# From another run's base step


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    config = tiny(tmp_path_factory.mktemp("base"), "base")
    return config, train(config)


def other_run(base: Config, log: str, *overrides: str) -> Config:
    path = base.output_dir.parent / "tiny.yaml"
    return load_config(path, [f"init_from={checkpoint_path(base.run_dir, 0)}", *overrides], log=log)


def test_a_run_from_another_base_step_equals_the_run_that_trained_it(
    base: tuple[Config, dict[str, Any]],
) -> None:
    config = other_run(base[0], "again")
    results = train(config)
    for step in (0, 1):
        assert_equal_states(weights(config, step), weights(base[0], step))
    for ours, theirs in zip(results["steps"], base[1]["steps"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert results["steps"][0]["seconds"] == base[1]["steps"][0]["seconds"]
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [x["iteration"] for x in lines if "loss" in x] == list(range(len(lines) - 2))


def test_another_method_starts_from_the_same_base(base: tuple[Config, dict[str, Any]]) -> None:
    config = other_run(base[0], "finetune", "method=finetune")
    results = train(config)
    assert results["steps"][0]["miou_all"] == base[1]["steps"][0]["miou_all"]
    assert results["steps"][1]["per_class_iou"] != base[1]["steps"][1]["per_class_iou"]


def test_the_base_is_read_once_and_a_rerun_does_not_need_it(base: tuple[Config, dict[str, Any]]) -> None:
    folder = base[0].run_dir.parent
    shutil.copy(checkpoint_path(base[0].run_dir, 0), folder / "moved.pth")
    config = other_run(base[0], "moved", f"init_from={folder / 'moved.pth'}")
    first = train(config)
    (folder / "moved.pth").unlink()
    assert train(config) == first


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["task=[[disc, ring], [star]]"],
            r"knows the classes background, ring, disc, but step 0 .* disc, ring",
        ),
        (["model.channels=16"], r"holds another model \(model: channels: 8 → 16, there → here\)"),
        (["init_from=/no/such.pth"], r"/no/such\.pth: the checkpoint is missing"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_before_training(
    base: tuple[Config, dict[str, Any]], overrides: list[str], told: str
) -> None:
    config = other_run(base[0], "refused", *overrides)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        prepare(config, WORKER)
    assert not config.run_dir.exists()


def test_a_base_trained_at_another_crop_is_refused_where_the_model_depends_on_it(tmp_path: Path) -> None:
    source = tiny(tmp_path, "vit", *SEGMENTER, "task=[[ring, disc]]")
    train(source)
    config = other_run(source, "larger", *SEGMENTER, "train.crop_size=64")
    with pytest.raises(ValueError, match=r"init_from: .*step_0\.pth: .* does not fit .*pos_embed"):
        prepare(config, WORKER)


def test_a_base_step_that_is_taken_over_needs_no_images(base: tuple[Config, dict[str, Any]]) -> None:
    masks: dict[str, Mask] = {f"img{i}": np.full((32, 32), 3, np.uint8) for i in range(4)}
    names = ["ring", "disc", "comet"]
    root = write_folder(base[0].output_dir.parent / "new_data", names, masks, masks)
    data = [f"data.root={root}", "data.name=folder", "task=[[ring, disc], [comet]]"]
    plan = prepare(other_run(base[0], "new", *data), WORKER)
    assert [len(ids) for ids in plan.image_ids] == [0, 4]


# Class orders


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
        data = ["data.name=folder", f"data.root={root}", "loss.pseudo_label.threshold=0.4"]
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


# Through the command line


def test_two_ranks_run_a_segmenter_with_held_out_images_through_the_command_line(tmp_path: Path) -> None:
    path = write_tiny_config(tmp_path)
    fields = set_fields(*SEGMENTER, "val_fraction=0.25", "checkpoint=best_holdout", "train.num_epochs=2")
    process = run_main("--config", path, "--log", "two", *fields, ranks=2)
    assert process.returncode == 0, process.stderr
    folder = tmp_path / "runs" / "two"
    results = json.loads((folder / "results.json").read_text())
    assert [len(step["per_class_iou"]) for step in results["steps"]] == [3, 5]
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["name"] == "segmenter"
    terms = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("embedding_distillation" in x for x in terms if x["step"] == 1 and "loss" in x)
    # Both ranks kept the same epoch: the score of its checkpoint, over the images of both, is the one it was kept for.
    config = load_config(path, [f.replace("--set ", "") for f in fields if f != "--set"], log="two")
    plan = prepare(config, WORKER)
    for step in plan.task.steps:
        model = restore_model(config, load_checkpoint(checkpoint_path(folder, step.index))).eval()
        iou = validate(plan, step, model, WORKER).iou
        stored = list(results["steps"][step.index]["per_class_iou"].values())
        assert iou.tolist() == pytest.approx([np.nan if x is None else x for x in stored], nan_ok=True)
