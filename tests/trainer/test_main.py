"""The command line end to end: what runs leave, how they resume, and what wrong input is told."""

from __future__ import annotations

import builtins
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from datasets import ade20k, shapes, voc
from datasets.incremental import training_table
from datasets.shapes import ShapesDataset
from datasets.tasks import build_task
from tests.support.cli import LAUNCHER_VARIABLES, run_main, set_fields, write_tiny_config
from tests.support.data import Mask, stripes, write_ade, write_folder, write_voc
from trainer.checks import check_parallelism
from trainer.config import load_config
from utils.distributed import Worker, process_group
from utils.report.pictures import read_panels

TERMS = ["cross_entropy", "feature_distillation", "output_distillation", "orthogonal"]
GROUPS = ["miou_all", "miou_old", "miou_new", "miou_base", "miou_incremental"]
# One window a forward pass: any number of ranks computes the same numbers. Trained long enough to tell classes apart.
SLIDING = [
    *("evaluate.mode=sliding", "evaluate.flip=true", "evaluate.scales=[0.5, 1, 1.5]", "evaluate.stride=20"),
    *("evaluate.batch_size=1", "data.num_workers=2", "train.num_epochs=8", "train.num_epochs_incremental=1"),
    *("train.optimizer=adamw", "train.lr_base=3e-3", "train.lr_head_factor=1"),
]
CLASSES_OF = {
    "shapes": shapes.CLASSES,
    "voc": voc.CLASSES,
    "ade20k": ade20k.CLASSES,
    "folder": ("background", "plum", "fig", "lime", "kiwi", "pear", "date"),
}
LEARNING_ORDER = {
    "shapes": ["background", "ring", "disc", "star", "cross"],
    "voc": ["background", "person", "cat", "dog"],
    "ade20k": list(ade20k.CLASSES),
    "folder": ["background", "pear", "kiwi", "date"],
}


class Finished(NamedTuple):
    """A command that has ended, and the folder of its run."""

    process: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """results.json."""
        content: dict[str, Any] = json.loads((self.folder / "results.json").read_text())
        return content

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """The state dict in the checkpoint of a step."""
        checkpoint = torch.load(self.folder / "checkpoints" / f"step_{step}.pth", weights_only=True)
        state: dict[str, torch.Tensor] = checkpoint["model"]
        return state

    def metrics(self, step: int | None = None, evaluation: bool = False) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl about training, or about evaluation."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if ("miou_all" in line) == evaluation and step in (None, line["step"])]

    def train_images(self, step: int) -> list[str]:
        """Ids of the images that a step trained on."""
        return (self.folder / "train_images" / f"step_{step}.txt").read_text().splitlines()

    def confusion(self, step: int) -> tuple[list[str], list[list[int]]]:
        """Class names and pixel counts, rows ground truth."""
        with (self.folder / "confusion" / f"step_{step}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert [row[0] for row in rows] == header[1:]
        return header[1:], [[int(count) for count in row[1:]] for row in rows]


class Workplace:
    """A folder with a config, and all runs that these tests look at, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = write_tiny_config(folder)
        self.runs: dict[str, Finished] = {}

    def arguments(self, name: str, *overrides: str) -> list[str]:
        """Command line of a run."""
        return ["--config", str(self.config), "--log", name, *set_fields(*overrides)]

    def run(self, name: str, *overrides: str, **how: Any) -> Finished:
        """Run main.py, and wait for it."""
        process = run_main(*self.arguments(name, *overrides), **how)
        return Finished(process, self.folder / "runs" / name)

    def copy(self, name: str, new_name: str) -> Finished:
        """Copy what a run has left to another name."""
        folder = self.folder / "runs" / new_name
        shutil.copytree(self.runs[name].folder, folder)
        return Finished(self.runs[name].process, folder)


def write_data_sets(folder: Path) -> dict[str, list[str]]:
    """Write a tiny data set of every file-based kind; return the overrides that choose it and its classes."""

    def draw(name: str, *class_names: str) -> dict[str, Mask]:
        first, second, third = map(CLASSES_OF[name].index, class_names)
        # Ids 1 to 3 beside those of the task, and 255 at the edge.
        pairs = [(first, second), (first, 1), (second, third), (third, 2), (third, first), (second, 3)]
        return {f"img{i}": stripes(0, *ids, 255, height=32, width=40) for i, ids in enumerate(pairs * 2)}

    masks = draw("voc", "person", "cat", "dog")
    write_voc(folder / "voc", masks, {f"val_{i}": mask for i, mask in masks.items()})
    masks = draw("ade20k", "car", "tree", "flag")
    write_ade(folder / "ade20k", masks, masks)
    masks = draw("folder", "pear", "kiwi", "date")
    write_folder(folder / "folder", CLASSES_OF["folder"], masks, masks)
    return {
        "voc": ["data.name=voc", f"data.root={folder / 'voc'}", "task=[[person, cat], [dog]]"],
        "ade20k": ["data.name=ade20k", f"data.root={folder / 'ade20k'}", "task='149-1'"],
        "folder": ["data.name=folder", f"data.root={folder / 'folder'}", "task=[[pear, kiwi], [date]]"],
    }


def read_val_labels(folder: Path, name: str) -> list[Mask]:
    """The validation labels of a data set as evaluation sees them, in data set ids."""
    if name == "shapes":
        dataset = ShapesDataset("val", 7, 32)
        return [dataset.read_label(image_id) for image_id in dataset.ids]
    patterns = {
        "voc": "SegmentationClassAug/val_*.png",
        "ade20k": "annotations/validation/*.png",
        "folder": "masks/val/*.png",
    }
    paths = sorted((folder / name).rglob(patterns[name]))
    # Images of 32 x 40 pixels, cropped in the centre to 32.
    return [np.asarray(Image.open(path))[:, 4:36] for path in paths]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """All runs; two commands at a time."""
    place = Workplace(tmp_path_factory.mktemp("main"))
    data = write_data_sets(place.folder)
    distil = "loss.output_distillation.enabled=true"
    commands: dict[str, tuple[list[str], dict[str, Any]]] = {
        "shapes": (["data.num_workers=2"], {}),
        "two_ranks": ([], {"ranks": 2}),
        "joint": (["method=joint"], {"ranks": 2, "launcher": "torch.distributed.launch"}),
        "again": ([], {}),
        "voc": ([*data["voc"], "method=finetune"], {}),
        "ade20k": ([*data["ade20k"], "method=finetune", distil], {}),
        "folder": ([*data["folder"], "loss.orthogonal.enabled=false"], {}),
        "sliding": (SLIDING, {}),
        "diverged": (["train.lr_incremental=1e30"], {}),
    }
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(place.run, name, *overrides, **how)
            for name, (overrides, how) in commands.items()
        }
    place.runs = {name: run.result() for name, run in started.items()}
    return place


@pytest.fixture(scope="module")
def reruns(place: Workplace) -> dict[str, tuple[Finished, dict[Path, int]]]:
    """Copies of the finished run on shapes, harmed and run again; with each, its files' change times before."""
    copies = {name: place.copy("shapes", name) for name in ("rerun", "step_1_lost", "entry_lost")}
    (copies["step_1_lost"].folder / "checkpoints" / "step_1.pth").unlink()
    with (copies["step_1_lost"].folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "iter')  # cut off by a full disk
    for name in ("step_1_lost", "entry_lost"):
        path = copies[name].folder / "results.json"
        results = json.loads(path.read_text())
        path.write_text(json.dumps({**results, "steps": results["steps"][:1]}))
    # One as older code left it, without what report.html shows; in the other it cannot be written.
    (copies["step_1_lost"].folder / "task.json").unlink()
    shutil.rmtree(copies["step_1_lost"].folder / "panels")
    (copies["entry_lost"].folder / "report.html").unlink()
    (copies["entry_lost"].folder / "report.html").mkdir()
    overrides = {"rerun": ["data.num_workers=1", "logging.every=7"]}
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: (pool.submit(place.run, name, *overrides.get(name, [])), list_change_times(copy.folder))
            for name, copy in copies.items()
        }
    return {name: (run.result(), before) for name, (run, before) in started.items()}


class Outcome(NamedTuple):
    """How main.py ended inside this process: nothing is imported again."""

    code: int
    stdout: str
    stderr: str


Call = Callable[..., Outcome]


@pytest.fixture
def call_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """main.py in this process, for what ends before training."""

    def call(*arguments: str) -> Outcome:
        for name in LAUNCHER_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


def list_change_times(folder: Path) -> dict[Path, int]:
    """Change time of every file in a folder."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_weights(ours: Finished, theirs: Finished, step: int) -> None:
    ours_state, theirs_state = ours.weights(step), theirs.weights(step)
    assert ours_state.keys() == theirs_state.keys()
    assert [name for name in ours_state if not torch.equal(ours_state[name], theirs_state[name])] == []


def without_time(results: dict[str, Any]) -> dict[str, Any]:
    return {**results, "steps": [{**step, "seconds": None} for step in results["steps"]]}


each_finished = pytest.mark.parametrize("name", ["shapes", "voc", "ade20k", "folder", "two_ranks", "joint"])


# What a run leaves


@each_finished
def test_run_leaves_every_promised_file(place: Workplace, name: str) -> None:
    run = place.runs[name]
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
def test_results_hold_the_documented_keys_and_types(place: Workplace, name: str) -> None:
    results = place.runs[name].results
    types: dict[str, type] = {
        "task": str,
        "setting": str,
        "method": str,
        "dataset": str,
        "class_names": list,
        "steps": list,
    }
    types |= {"seed": int, "device": str, "versions": dict, "miou_avg": float}
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
        ("ade20k", "149-1", "finetune", 12),
        ("folder", "2-1", "mbs", 12),
        ("joint", "2-2", "joint", 7),
    ],
)
def test_results_describe_the_run_with_classes_in_learning_order(
    place: Workplace, name: str, task: str, method: str, num_val: int
) -> None:
    results = place.runs[name].results
    dataset = "shapes" if name == "joint" else name
    assert (results["task"], results["method"], results["dataset"]) == (task, method, dataset)
    assert (results["setting"], results["seed"]) == ("overlap", 0)
    assert results["class_names"] == LEARNING_ORDER[dataset]
    assert {step["num_val_images"] for step in results["steps"]} == {num_val}
    checkpoint = torch.load(place.runs[name].folder / "checkpoints" / "step_1.pth", weights_only=True)
    assert checkpoint["class_names"] == LEARNING_ORDER[dataset]


@each_finished
@pytest.mark.parametrize("step", [0, 1])
def test_results_agree_with_iou_recomputed_from_the_confusion_matrix(
    place: Workplace, name: str, step: int
) -> None:
    run = place.runs[name]
    entry, (names, counts) = run.results["steps"][step], run.confusion(step)
    assert names == run.results["class_names"][: len(names)]
    iou: dict[str, float | None] = {}
    for c, class_name in enumerate(names):
        union = sum(counts[c]) + sum(row[c] for row in counts) - counts[c][c]
        # ADE20K's 'other' is void in evaluation, so background, although it is predicted, cannot occur.
        absent = union == 0 or (name == "ade20k" and c == 0)
        iou[class_name] = None if absent else counts[c][c] / union
    assert entry["per_class_iou"] == pytest.approx(iou)

    def mean(group: list[str]) -> float | None:
        known = [value for value in map(iou.__getitem__, group) if value is not None]
        return sum(known) / len(known) if known else None

    num_old = len(names) - len(entry["new_classes"])
    num_base = len(run.results["steps"][0]["new_classes"])
    groups = [names, names[:num_old], names[num_old:], names[:num_base], names[num_base:]]
    assert [entry[key] for key in GROUPS] == pytest.approx([mean(group) for group in groups])
    groups = [[class_name for class_name in group if class_name != "background"] for group in groups]
    found = [entry["without_background"][key] for key in GROUPS]
    assert found == pytest.approx([mean(group) for group in groups])
    # MiB counts background nowhere, PLOP as the top level does, MBS in all only.
    known = [name for name in names if iou[name] is not None]
    assert [group["miou"] for group in entry["groups"]["mib"].values()] == found
    assert [group["miou"] for group in entry["groups"]["plop"].values()] == [entry[key] for key in GROUPS]
    assert [group["miou"] for group in entry["groups"]["mbs"].values()] == [entry["miou_all"], *found[1:]]
    assert entry["groups"]["mbs"]["all"]["classes"] == known
    assert entry["groups"]["mib"]["all"]["classes"] == [name for name in known if name != "background"]


@pytest.mark.parametrize("name", LEARNING_ORDER)
@pytest.mark.parametrize("step", [0, 1])
def test_confusion_matrix_counts_every_labelled_validation_pixel_once(
    place: Workplace, name: str, step: int
) -> None:
    names, counts = place.runs[name].confusion(step)
    row_of = {CLASSES_OF[name].index(class_name): row for row, class_name in enumerate(names)}
    void = {255} | {CLASSES_OF[name].index(class_name) for class_name in LEARNING_ORDER[name][len(names) :]}
    if name == "ade20k":
        void.add(0)
    labelled = [0] * len(names)
    for label in read_val_labels(place.folder, name):
        for class_id, count in zip(*np.unique(label, return_counts=True), strict=True):
            if class_id not in void:
                # What the task leaves out is background.
                labelled[row_of.get(class_id, 0)] += int(count)
    assert [sum(row) for row in counts] == labelled
    assert sum(labelled) > 0


def test_sliding_windows_with_flip_and_scales_count_every_pixel_once(place: Workplace) -> None:
    run = place.runs["sliding"]
    assert run.process.returncode == 0, run.process.stderr
    labels = np.stack(read_val_labels(place.folder, "shapes"))
    ids = [CLASSES_OF["shapes"].index(name) for name in LEARNING_ORDER["shapes"]]
    _, counts = run.confusion(1)
    expected = [int((labels == i).sum()) for i in ids]
    expected[0] += int((~np.isin(labels, ids)).sum())  # what the task leaves out is background
    assert [sum(row) for row in counts] == expected


def test_two_ranks_slide_to_the_same_results(place: Workplace) -> None:
    whole, run = place.runs["sliding"], place.copy("sliding", "sliding_ranks")
    (run.folder / "results.json").unlink()
    process = place.run("sliding_ranks", *SLIDING, ranks=2).process
    assert process.returncode == 0, process.stderr
    assert [run.confusion(step) for step in (0, 1)] == [whole.confusion(step) for step in (0, 1)]
    assert run.results == {**whole.results, "device": "2 × cpu"}


@each_finished
def test_number_of_training_images_is_that_of_the_listed_ids(place: Workplace, name: str) -> None:
    run = place.runs[name]
    for step in (0, 1):
        ids = run.train_images(step)
        assert len(set(ids)) == len(ids) == run.results["steps"][step]["num_train_images"] > 0


def test_step_trains_on_the_images_that_show_its_classes(place: Workplace) -> None:
    dataset = ShapesDataset("train", 16, 32)
    shown = {i: set(np.unique(dataset.read_label(i))) for i in dataset.ids}
    assert place.runs["shapes"].train_images(0) == [i for i in shown if shown[i] & {5, 1}]
    assert place.runs["shapes"].train_images(1) == [i for i in shown if shown[i] & {6, 4}]
    assert place.runs["voc"].train_images(1) == [f"img{i}" for i in (2, 3, 4, 8, 9, 10)]


@each_finished
def test_console_ends_with_the_table(place: Workplace, name: str) -> None:
    run = place.runs[name]
    lines = read_table(run)
    average = f"{100 * run.results['miou_avg']:.1f}"
    assert lines[-1].split() == ["avg", average]
    assert [line.split()[0] for line in lines[3:5]] == ["0", "1"]
    assert f"{100 * run.results['steps'][1]['miou_all']:.1f}" in lines[4].split()
    assert "\n".join(lines[1:]) in (run.folder / "log.txt").read_text()


def read_table(run: Finished) -> list[str]:
    """The lines of the console from the table's title on."""
    lines = [line.rstrip() for line in run.process.stdout.splitlines()]
    title = next(number for number, line in enumerate(lines) if line.endswith("(percent)"))
    return [line for line in lines[title:] if line]


def test_metrics_hold_a_line_for_every_iteration_with_all_terms_of_the_method(place: Workplace) -> None:
    run = place.runs["shapes"]
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
    run = place.runs["shapes"]
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
    before, after = place.runs["shapes"].weights(0), place.runs["shapes"].weights(1)
    norms = [name.removesuffix("running_mean") for name in before if name.endswith("running_mean")]
    assert norms
    for norm in norms:
        assert before[norm + "num_batches_tracked"] == 3
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(before[norm + part], after[norm + part])
    assert not torch.equal(before["classifier.heads.0.weight"], after["classifier.heads.0.weight"])


# Methods and their terms


def test_finetune_has_cross_entropy_only(place: Workplace) -> None:
    assert terms_of_step_1(place.runs["voc"]) == {"cross_entropy"}


def test_explicit_term_wins_over_the_preset(place: Workplace) -> None:
    assert terms_of_step_1(place.runs["ade20k"]) == {"cross_entropy", "output_distillation"}


def test_term_that_is_switched_off_is_absent(place: Workplace) -> None:
    expected = {"cross_entropy", "feature_distillation", "output_distillation"}
    assert terms_of_step_1(place.runs["folder"]) == expected


def test_joint_trains_on_the_images_and_labels_of_all_steps_so_far(place: Workplace) -> None:
    run, mbs = place.runs["joint"], place.runs["shapes"]
    assert terms_of_step_1(run) == {"cross_entropy"}
    assert run.train_images(0) == mbs.train_images(0)
    both = {*mbs.train_images(0), *mbs.train_images(1)}
    assert run.train_images(1) == [i for i in ShapesDataset("train", 16, 32).ids if i in both]
    assert len(both) > len(mbs.train_images(1))
    config = load_config(place.config, ["method=joint"])
    task = build_task(config.task, CLASSES_OF["shapes"])
    table = training_table(task, task.steps[1], config.data.train_on)
    assert [table[i] for i in (0, 5, 1, 6, 4, 2, 255)] == [0, 1, 2, 3, 4, 0, 255]


def terms_of_step_1(run: Finished) -> set[str]:
    lines = run.metrics(step=1)
    assert lines
    return set.intersection(*(set(line) for line in lines)) & set(TERMS)


# Several processes


def test_two_ranks_validate_every_image_once(place: Workplace) -> None:
    for step in (0, 1):
        one, two = (np.array(place.runs[name].confusion(step)[1]) for name in ("shapes", "two_ranks"))
        assert (one.sum(axis=1) == two.sum(axis=1)).all()
        assert one.sum() > 0


def test_two_ranks_train_on_the_same_images_in_as_many_iterations(place: Workplace) -> None:
    one, two = place.runs["shapes"], place.runs["two_ranks"]
    assert [one.train_images(step) for step in (0, 1)] == [two.train_images(step) for step in (0, 1)]
    schedule = [[(line["iteration"], line["lr"]) for line in run.metrics()] for run in (one, two)]
    assert schedule[0] == schedule[1]
    assert two.results["device"] == "2 × cpu"


def test_two_ranks_write_and_speak_once(place: Workplace) -> None:
    for name in ("two_ranks", "joint"):
        run = place.runs[name]
        assert run.process.stdout.count("(percent)") == 1
        assert (run.folder / "log.txt").read_text().count("(percent)") == 1
        assert [line["step"] for line in run.metrics(evaluation=True)] == [0, 1]


def test_ranks_say_that_batch_norm_is_not_synchronised_on_cpus(place: Workplace) -> None:
    assert "CPUs have no SyncBN" in place.runs["two_ranks"].process.stdout
    assert "SyncBN" not in place.runs["shapes"].process.stdout


# The same command again


def test_same_command_gives_identical_weights_with_any_number_of_workers(place: Workplace) -> None:
    ours, theirs = place.runs["shapes"], place.runs["again"]
    for step in (0, 1):
        assert_same_weights(ours, theirs, step)
        assert ours.confusion(step) == theirs.confusion(step)
    assert without_time(ours.results) == without_time(theirs.results)


def test_a_run_that_older_code_began_has_a_report_of_what_there_is(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    run, _ = reruns["step_1_lost"]
    panels, problems = read_panels(run.folder, num_steps=2)
    assert problems == []
    assert [[mask is not None for mask in panel.predictions] for panel in panels] == [[False, True]] * 2
    assert (run.folder / "task.json").read_bytes() == (place.runs["shapes"].folder / "task.json").read_bytes()
    assert "all 2 steps finished" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_ends_no_run(
    reruns: dict[str, tuple[Finished, dict[Path, int]]],
) -> None:
    run, _ = reruns["entry_lost"]
    assert run.process.returncode == 0, run.process.stderr
    assert len(run.results["steps"]) == 2
    assert "warning: report.html was not written" in run.process.stdout
    assert f"python -m tools.report {run.folder}" in run.process.stdout


def test_the_help_waits_for_no_large_library() -> None:
    command = [sys.executable, "-X", "importtime", str(Path(main.__file__)), "--help"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "argparse" in listed
    assert [name for name in ("torch", "plotly", "jinja2", "numpy") if f" {name}\n" in listed] == []


def test_rerun_of_a_finished_command_trains_nothing_whatever_workers_and_logging(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    run, before = reruns["rerun"]
    assert run.process.returncode == 0, run.process.stderr
    after = list_change_times(run.folder)
    assert {path.name for path in before if after[path] != before[path]} <= {
        "config.yaml",
        "task.json",
        "log.txt",
        ".lock",
    }
    assert after.keys() == before.keys()
    assert read_table(run) == read_table(place.runs["shapes"])
    assert "step 0:" not in run.process.stdout
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["data"]["num_workers"] == 1


def test_run_without_its_last_step_continues_there_to_identical_results(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    whole, (run, before) = place.runs["shapes"], reruns["step_1_lost"]
    assert run.process.returncode == 0, run.process.stderr
    step_0 = run.folder / "checkpoints" / "step_0.pth"
    assert step_0.stat().st_mtime_ns == before[step_0]
    assert "step 1: star, cross" in run.process.stdout
    assert "step 0:" not in run.process.stdout
    assert_same_weights(run, whole, 1)
    assert without_time(run.results) == without_time(whole.results)
    assert run.confusion(1) == whole.confusion(1)
    strip = {"images_per_second": None}
    assert [line | strip for line in run.metrics()] == [line | strip for line in whole.metrics()]
    assert run.metrics(evaluation=True) == whole.metrics(evaluation=True)


def test_step_that_was_trained_but_not_evaluated_is_only_evaluated(
    place: Workplace, reruns: dict[str, tuple[Finished, dict[Path, int]]]
) -> None:
    whole, (run, before) = place.runs["shapes"], reruns["entry_lost"]
    assert run.process.returncode == 0, run.process.stderr
    for path in run.folder.glob("checkpoints/*"):
        assert path.stat().st_mtime_ns == before[path]
    # The seconds of training lie in the checkpoint.
    assert run.results == whole.results
    assert (run.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("broken", ["missing", "unreadable"])
def test_step_without_its_old_model_is_an_error(place: Workplace, call_main: Call, broken: str) -> None:
    """Never a teacher with random weights."""
    run = place.copy("shapes", f"step_0_{broken}")
    if broken == "missing":
        (run.folder / "checkpoints" / "step_0.pth").unlink()
    else:
        (run.folder / "checkpoints" / "step_1.pth").unlink()
        (run.folder / "checkpoints" / "step_0.pth").write_bytes(b"PK\x03\x04 cut off")
    before = list_change_times(run.folder / "checkpoints")
    outcome = call_main(*place.arguments(run.folder.name))
    assert outcome.code == 2
    assert str(run.folder / "checkpoints" / "step_0.pth") in outcome.stderr
    assert list_change_times(run.folder / "checkpoints") == before


def test_config_that_could_change_results_is_refused_under_an_existing_name(
    place: Workplace, call_main: Call
) -> None:
    run = place.runs["shapes"]
    before = list_change_times(run.folder)
    outcome = call_main(*place.arguments("shapes", "train.lr_base=0.5", "data.num_workers=2"))
    assert outcome.code == 2
    assert "train.lr_base: 0.01 → 0.5" in outcome.stderr
    assert "--log" in outcome.stderr
    assert "num_workers" not in outcome.stderr
    assert list_change_times(run.folder) == before


def test_config_of_the_last_checkpoint_counts_where_the_file_is_gone(
    place: Workplace, call_main: Call
) -> None:
    run = place.copy("shapes", "no_config_file")
    (run.folder / "config.yaml").unlink()
    outcome = call_main(*place.arguments("no_config_file", "train.lr_base=0.5"))
    assert outcome.code == 2
    assert "holds a run with another config (train.lr_base: 0.01 → 0.5" in outcome.stderr
    assert call_main(*place.arguments("no_config_file"), "--dry-run").code == 0


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"steps": 3}'])
def test_damaged_results_are_named_with_what_to_do(place: Workplace, call_main: Call, content: str) -> None:
    path = place.runs["shapes"].folder.with_name("damaged") / "results.json"
    if not path.exists():
        place.copy("shapes", "damaged")
    path.write_text(content)
    outcome = call_main(*place.arguments("damaged"))
    assert outcome.code == 2
    assert f"error: {path}: not the results of a run" in outcome.stderr
    assert "delete it" in outcome.stderr
    assert path.read_text() == content


def test_unexpected_error_is_told_with_its_traceback_on_the_console_and_in_the_log(
    place: Workplace, call_main: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("something is wrong in the code")

    run = place.copy("shapes", "unexpected")
    (run.folder / "results.json").unlink()
    monkeypatch.setattr("trainer.run.assess", fail)
    with pytest.raises(ValueError, match=r"^something is wrong in the code$"):
        call_main(*place.arguments("unexpected"))
    log = (run.folder / "log.txt").read_text()
    assert log.count("Traceback (most recent call last)") == 1
    assert log.endswith("ValueError: something is wrong in the code\n\n")


def test_diverging_loss_stops_the_run_and_leaves_earlier_steps_intact(place: Workplace) -> None:
    run = place.runs["diverged"]
    assert run.process.returncode == 2
    assert "error: step 1, iteration 1 (4 of the run): cross_entropy is nan" in run.process.stderr
    assert "Traceback" not in run.process.stderr
    assert run.process.stderr.count("cross_entropy is nan") == 1
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step_0.pth"]
    assert_same_weights(run, place.runs["shapes"], 0)
    assert [step["step"] for step in run.results["steps"]] == [0]


# Before anything runs


def test_dry_run_prints_config_and_steps_and_writes_nothing(place: Workplace, call_main: Call) -> None:
    arguments = place.arguments("dry", "loss.orthogonal.weight=0.5", "train.num_epochs_incremental=3")
    outcome = call_main(*arguments, "--dry-run")
    assert outcome.code == 0
    assert not (place.folder / "runs" / "dry").exists()
    text, table, sizes = outcome.stdout.split("\n\n")
    config = yaml.safe_load(text)
    assert config["train"]["batch_size"] == 4
    assert config["loss"]["orthogonal"] == {"enabled": True, "weight": 0.5}
    assert config["loss"]["weight_transfer"] is True
    header, *rows = table.splitlines()
    columns = ["step", "train", "held", "out", "val", "iterations", "parameters", "new", "classes"]
    assert header.split() == columns
    (*base, base_names), (*last, last_names) = (row.split(maxsplit=6) for row in rows)
    assert (base_names, last_names) == ("background, ring, disc", "star, cross")
    assert (base[:5], last[:5]) == (["0", "13", "0", "7", "3"], ["1", "10", "0", "7", "6"])
    # Two classes more: a weight for each of 8 channels, and a bias.
    assert int(last[5].replace(",", "")) - int(base[5].replace(",", "")) == 2 * (8 + 1)
    dataset = ShapesDataset("train", 16, 32)
    shown = [set(np.unique(dataset.read_label(image_id)).tolist()) for image_id in dataset.ids]
    first, later = {CLASSES_OF["shapes"].index(c) for c in ("ring", "disc")}, {4, 6}
    disjoint = sum(bool(ids & first) and not ids & later for ids in shown)
    partitioned = [int(size) for size in sizes.splitlines()[3].split("|")[4].split(",")]
    assert sum(partitioned) == sum(bool(ids & (first | later)) for ids in shown)
    assert sizes.splitlines()[1:3] == [
        "| shapes | 2-2 | overlap | 13, 10 |",
        f"| shapes | 2-2 | disjoint | {disjoint}, 10 |",
    ]


def test_dry_run_leaves_a_finished_run_alone(place: Workplace, call_main: Call) -> None:
    before = list_change_times(place.runs["shapes"].folder)
    assert call_main(*place.arguments("shapes"), "--dry-run").code == 0
    assert list_change_times(place.runs["shapes"].folder) == before


def test_user_error_is_one_message_on_stderr(tmp_path: Path, call_main: Call) -> None:
    config = write_tiny_config(tmp_path)
    outcome = call_main("--config", str(config), "--log", "wrong", "--set", "train.lr_bass=1")
    assert outcome == (2, "", "error: --set: train.lr_bass: unknown key; did you mean 'lr_base'?\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["data.name=voc", "data.root=/no/such", "task=15-1"],
            ["/no/such/VOCdevkit", "no such folder", "download_voc.sh"],
        ),
        (["task=[[disc], [rign]]"], ["step 1", "unknown class 'rign'", "did you mean 'ring'"]),
        (["task=15-1"], ["15", "6 besides background"]),
        (
            ["train.lr_bass=1", "data.num_workers=-1", "model.output_stride=7"],
            ["train.lr_bass", "did you mean 'lr_base'", "data.num_workers", "-1", "model.output_stride", "7"],
        ),
        (["train.amp=fp16"], ["train.amp", "fp16 needs a GPU"]),
        (["train.accumulate=3"], ["train.batch_size", "4", "train.accumulate"]),
        (["train.accumulate=4"], ["train.batch_size", "BatchNorm"]),
        (["model.pretrained=/no/such.pth"], ["model.pretrained", "/no/such.pth"]),
        (["model.backbone=resnet1O1"], ["model.backbone", "resnet1O1", "resnet101"]),
    ],
    ids=lambda value: value[0].partition("=")[0] if "=" in value[0] else "told",
)
def test_wrong_field_is_named_before_anything_is_written(
    tmp_path: Path, call_main: Call, overrides: list[str], expected: list[str]
) -> None:
    config = write_tiny_config(tmp_path)
    outcome = call_main("--config", str(config), "--log", "wrong", "--device", "cpu", *set_fields(*overrides))
    assert_refused(outcome, tmp_path, expected)


@pytest.mark.parametrize(("ranks", "accumulate"), [(3, 1), (2, 2), (4, 1)])
def test_batch_that_cannot_be_cut_into_ranks_and_micro_batches_is_refused(
    tmp_path: Path, ranks: int, accumulate: int
) -> None:
    config = load_config(write_tiny_config(tmp_path), [f"train.accumulate={accumulate}"])
    check_parallelism(config, Worker(torch.device("cpu")))
    with pytest.raises(ValueError, match=rf"train\.batch_size: 4 .* {ranks} ranks × {accumulate}"):
        check_parallelism(config, Worker(torch.device("cpu"), world_size=ranks))


def test_every_problem_of_a_config_file_is_told_with_the_file(tmp_path: Path, call_main: Call) -> None:
    config = write_tiny_config(tmp_path)
    config.write_text(
        config.read_text().replace("batch_size", "batchsize").replace("shapes:\n", "shapess:\n", 1)
    )
    outcome = call_main("--config", str(config), "--log", "wrong")
    assert_refused(outcome, tmp_path, ["batchsize", "batch_size", "shapess", "'shapes'"])
    assert outcome.stderr.count(str(config)) == 3  # two unknown keys, and batch_size is missing


def test_missing_config_file_is_named(tmp_path: Path, call_main: Call) -> None:
    outcome = call_main("--config", str(tmp_path / "no.yaml"), "--log", "wrong")
    assert_refused(outcome, tmp_path, [str(tmp_path / "no.yaml"), "no such config file"])


def test_gpu_that_is_not_there_is_named(
    tmp_path: Path, call_main: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = write_tiny_config(tmp_path)
    outcome = call_main("--config", str(config), "--log", "wrong", "--device", "cuda")
    assert_refused(outcome, tmp_path, ["--device cuda", "no GPU"])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for device in ("auto", "cuda"):
        for local_rank in "012":  # every process raises alike: none waits for the others
            monkeypatch.setenv("LOCAL_RANK", local_rank)
            with pytest.raises(ValueError, match=r"3 processes, but 2 GPUs"), process_group(device):
                pass


class TestWrongFolder:
    """A data set of one's own with something wrong in it."""

    def train(self, tmp_path: Path, call_main: Call, task: str = "[[pear], [kiwi]]") -> Outcome:
        config = write_tiny_config(tmp_path)
        overrides = ["data.name=folder", f"data.root={tmp_path / 'data'}", f"task={task}"]
        arguments = ["--config", str(config), "--log", "wrong", *set_fields(*overrides)]
        return call_main(*arguments)

    def write(self, tmp_path: Path, **more: Mask) -> Path:
        masks = {f"img{i}": stripes(0, 1, 2, height=32, width=32) for i in range(4)} | more
        return write_folder(tmp_path / "data", ["pear", "kiwi", "fig"], masks, masks)

    def test_image_without_mask(self, tmp_path: Path, call_main: Call) -> None:
        mask = self.write(tmp_path) / "masks" / "train" / "img2.png"
        mask.unlink()
        assert_refused(self.train(tmp_path, call_main), tmp_path, [str(mask), "mask is missing"])

    @pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
    def test_id_out_of_range_in_a_mask_of_either_split(
        self, tmp_path: Path, call_main: Call, split: str, other: str
    ) -> None:
        data = self.write(tmp_path, odd=stripes(0, 1, 9, height=32, width=32))
        (data / "masks" / other / "odd.png").unlink()
        (data / "images" / other / "odd.jpg").unlink()
        expected = [str(data / "masks" / split / "odd.png"), "found ids [9]", "allowed are 0 to 3"]
        assert_refused(self.train(tmp_path, call_main), tmp_path, expected)

    @pytest.mark.parametrize("library", ["mmcv", "cv2"])
    def test_opencv_that_cannot_be_loaded(
        self, tmp_path: Path, call_main: Call, monkeypatch: pytest.MonkeyPatch, library: str
    ) -> None:
        self.write(tmp_path)
        real_import = builtins.__import__

        def failing_import(name: str, *arguments: Any, **options: Any) -> Any:
            if name.partition(".")[0] == library:
                raise ImportError("libGL.so.1: cannot open shared object file")
            return real_import(name, *arguments, **options)

        for name in [name for name in sys.modules if name.partition(".")[0] in ("mmcv", "cv2")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", failing_import)
        outcome = self.train(tmp_path, call_main)
        assert_refused(outcome, tmp_path, ["libGL.so.1: cannot open shared object file", "apt-get install"])
        assert outcome.stderr.count("\n") == 1

    def test_step_without_image(self, tmp_path: Path, call_main: Call) -> None:
        self.write(tmp_path)
        outcome = self.train(tmp_path, call_main, task="[[pear], [fig]]")
        assert_refused(outcome, tmp_path, ["step 1 (fig)", "no training image"])

    def test_missing_classes(self, tmp_path: Path, call_main: Call) -> None:
        path = self.write(tmp_path) / "classes.txt"
        path.unlink()
        assert_refused(self.train(tmp_path, call_main), tmp_path, [str(path), "no such file"])


def assert_refused(outcome: Outcome, folder: Path, expected: list[str]) -> None:
    """Exit code 2 and a message with all that is expected, and no folder of a run."""
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert "error: " in outcome.stderr
    assert [text for text in expected if text not in outcome.stderr] == []
    assert not (folder / "runs" / "wrong").exists()
