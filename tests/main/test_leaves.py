"""What a run leaves: files, results, curves, the table on the console."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets.shapes import ShapesDataset
from tests.support.runs import GROUPS, LEARNING_ORDER, TERMS, Workplace, each_finished, read_table
from utils.logging import read_metrics


@each_finished
def test_run_leaves_every_promised_file(place: Workplace, name: str) -> None:
    run = place.finished(name)
    assert run.process.returncode == 0, run.process.stderr
    for relative in ("config.yaml", "task.json", "log.txt", "metrics.jsonl", "report.html"):
        assert (run.folder / relative).stat().st_size > 0
    for relative in ("results.json", "results.csv", "results.md"):
        assert (run.folder / relative).stat().st_size > 0
    for pattern, names in {
        "checkpoints/*": ["step_0.pth", "step_1.pth"],
        "confusion/*": ["step_0.csv", "step_1.csv"],
        "train_images/*": ["step_0.txt", "step_1.txt"],
        "plots/*": ["forgetting.png", "miou_over_steps.png", "per_class_iou.png"],
    }.items():
        assert sorted(path.name for path in run.folder.glob(pattern)) == names
    for plot in run.folder.glob("plots/*.png"):
        assert plot.read_bytes().startswith(b"\x89PNG")
    # One rank writes, and one step opens one file; the final scores have another.
    assert len(list((run.folder / "tensorboard").iterdir())) == 3


@each_finished
def test_the_last_lines_say_where_to_look_and_the_log_has_every_term(place: Workplace, name: str) -> None:
    run = place.finished(name)
    assert run.process.stdout.splitlines()[-3:] == [
        f"report: {run.folder}/report.html (open it in a browser)",
        f"checkpoints: {run.folder}/checkpoints",
        f"curves: tensorboard --logdir {run.folder}/tensorboard",
    ]
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    (told, *_) = [line for line in log.splitlines() if "step 1, epoch 1, iteration" in line]
    last = read_metrics(run.folder / "metrics.jsonl")[0]
    (names,) = {tuple(line)[3:] for line in last if line["step"] == 1 and "epoch" in line}
    assert [part.split()[0] for part in told.split(": ", 1)[1].split(", ")] == list(names)


@each_finished
def test_results_hold_the_documented_keys_and_types(place: Workplace, name: str) -> None:
    results = place.finished(name).results
    types: dict[str, type] = {
        "task": str,
        "setting": str,
        "method": str,
        "dataset": str,
        "class_names": list,
        "steps": list,
    }
    types |= {
        "seed": int,
        "device": str,
        "versions": dict,
        "miou_avg": float,
        "val_images_sha256": str,
        "num_steps": int,
    }
    assert {key: type(results[key]) for key in types} == types
    assert results.keys() - types.keys() == {"commit"}
    for index, step in enumerate(results["steps"]):
        assert step["step"] == index
        groups = {*GROUPS, "hiou"}
        assert step["without_background"].keys() == groups
        numbers = {*groups, "forgetting", "num_train_images", "num_val_images", "seconds"}
        assert step.keys() == {
            "step",
            "new_classes",
            "per_class_iou",
            "without_background",
            "checkpoint",
            "groups",
            "train_images_sha256",
            *(["per_class_iou_of"] if name == "ade20k" else []),
            *numbers,
        }
        assert all(step[key] is None or step[key] >= 0 for key in numbers - {"forgetting"})
        assert isinstance(step["seconds"], float)
    base, last = results["steps"]
    assert [base[key] for key in ("miou_old", "miou_incremental", "hiou", "forgetting")] == [None] * 4
    assert base["new_classes"] + last["new_classes"] == results["class_names"]
    assert list(last["per_class_iou"]) == results["class_names"]
    assert results["miou_avg"] == pytest.approx((base["miou_all"] + last["miou_all"]) / 2)


@pytest.mark.parametrize(
    ("name", "task", "method", "num_val"),
    [
        ("shapes", "2-2", "mbs", 7),
        ("voc", "2-1", "finetune", 12),
        ("ade20k", "149-1", "mbs", 12),
        ("folder", "2-1", "mbs", 12),
        ("joint", "2-2", "joint", 7),
    ],
)
def test_results_describe_the_run_with_classes_in_learning_order(
    place: Workplace, name: str, task: str, method: str, num_val: int
) -> None:
    results = place.finished(name).results
    dataset = "shapes" if name == "joint" else name
    assert (results["task"], results["method"], results["dataset"]) == (task, method, dataset)
    assert (results["setting"], results["seed"]) == ("overlap", 0)
    assert results["class_names"] == LEARNING_ORDER[dataset]
    assert {step["num_val_images"] for step in results["steps"]} == {num_val}
    checkpoint = torch.load(place.finished(name).folder / "checkpoints" / "step_1.pth", weights_only=True)
    assert checkpoint["class_names"] == LEARNING_ORDER[dataset]


@each_finished
def test_number_of_training_images_is_that_of_the_listed_ids(place: Workplace, name: str) -> None:
    run = place.finished(name)
    for step in (0, 1):
        ids = run.train_images(step)
        assert len(set(ids)) == len(ids) == run.results["steps"][step]["num_train_images"] > 0


def test_step_trains_on_the_images_that_show_its_classes(place: Workplace) -> None:
    dataset = ShapesDataset("train", 16, 32)
    shown = {i: set(np.unique(dataset.read_label(i))) for i in dataset.ids}
    assert place.finished("shapes").train_images(0) == [i for i in shown if shown[i] & {5, 1}]
    assert place.finished("shapes").train_images(1) == [i for i in shown if shown[i] & {6, 4}]
    assert place.finished("voc").train_images(1) == [f"img{i}" for i in (2, 3, 4, 8, 9, 10)]


@each_finished
def test_console_ends_with_the_table(place: Workplace, name: str) -> None:
    run = place.finished(name)
    lines = read_table(run)
    average = f"{100 * run.results['miou_avg']:.1f}"
    assert lines[-1].split() == ["avg", average]
    assert [line.split()[0] for line in lines[3:5]] == ["0", "1"]
    assert f"{100 * run.results['steps'][1]['miou_all']:.1f}" in lines[4].split()
    assert "\n".join(lines[1:]) in (run.folder / "log.txt").read_text()


def test_metrics_hold_a_line_for_every_iteration_with_all_terms_of_the_method(place: Workplace) -> None:
    run = place.finished("shapes")
    lines = run.metrics()
    # 13 and 10 images in batches of 4.
    assert [(line["step"], line["iteration"]) for line in lines] == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)]
    for line in lines:
        terms = TERMS[:1] if line["step"] == 0 else TERMS
        assert line.keys() == {"step", "iteration", "epoch", "loss", "lr", "images_per_second", *terms}
        assert line["loss"] == pytest.approx(sum(line[term] for term in terms))
    # Poly with power 0.9, over 3 and over 2 iterations.
    rates = [0.01, 0.01 * (2 / 3) ** 0.9, 0.01 * (1 / 3) ** 0.9, 0.001, 0.001 * 0.5**0.9]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    evaluations = run.metrics(evaluation=True)
    assert [(line["step"], line["miou_all"]) for line in evaluations] == [
        (step["step"], step["miou_all"]) for step in run.results["steps"]
    ]


def test_tensorboard_shows_terms_learning_rate_scores_and_panels(place: Workplace) -> None:
    run = place.finished("shapes")
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= {*TERMS, "loss", "lr", *GROUPS}
    for name in (*TERMS, "lr"):
        logged = [(line["iteration"], line[name]) for line in run.metrics() if name in line]
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(iteration, pytest.approx(value)) for iteration, value in logged]
    for name in (*GROUPS, "hiou", "forgetting"):
        expected = [step[name] for step in run.results["steps"] if step[name] is not None]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(expected)
    for name in run.results["class_names"]:
        ious = [step["per_class_iou"].get(name) for step in run.results["steps"]]
        expected = [iou for iou in ious if iou is not None]
        tag = f"per_class_iou/{name}"
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(expected)
    # Rows and columns: background, ring and disc of step 0, star and cross of step 1.
    counts = np.array(run.confusion(1)[1])[1:3]
    (lost,) = events.Scalars("old_pixels_lost_to_background")
    assert (lost.step, lost.value) == (4, pytest.approx(counts[:, 0].sum() / counts.sum()))
    kept = sorted(path.name for path in (run.folder / "panels").iterdir())
    assert sorted(tags["images"]) == [f"panels/{image_id}" for image_id in kept]
    assert len(kept) == 2
    # Of every step, image, label and prediction side by side.
    panels = [events.Images(tag) for tag in tags["images"]]
    assert [[panel.step for panel in steps] for steps in panels] == [[2, 4], [2, 4]]
    assert {(panel.height, panel.width) for steps in panels for panel in steps} == {(32, 96)}
    last = run.results["steps"][-1]
    assert [event.value for event in events.Scalars("final/miou_all")] == pytest.approx([last["miou_all"]])


def test_batch_norm_is_trained_in_the_base_step_and_frozen_afterwards(place: Workplace) -> None:
    before, after = place.finished("shapes").weights(0), place.finished("shapes").weights(1)
    norms = [name.removesuffix("running_mean") for name in before if name.endswith("running_mean")]
    assert norms
    for norm in norms:
        assert before[norm + "num_batches_tracked"] == 3
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(before[norm + part], after[norm + part])
    assert not torch.equal(before["classifier.heads.0.weight"], after["classifier.heads.0.weight"])
