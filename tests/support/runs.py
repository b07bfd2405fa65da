"""Runs of main.py through the command line, and what they leave."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from datasets import ade20k, shapes, voc
from tests.support.cli import call_main, run_main, set_fields, write_tiny_config
from tests.support.data import Mask, stripes, write_ade, write_folder, write_voc
from tests.support.once import made_once

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
    """A folder with a config, data sets, and the runs of `list_commands`, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.commands = list_commands(folder)

    def arguments(self, name: str, *overrides: str) -> list[str]:
        """Command line of a run."""
        return ["--config", str(self.config), "--log", name, *set_fields(*overrides)]

    def run(self, name: str, *overrides: str) -> Finished:
        """Run main.py in this process."""
        return Finished(call_main(*self.arguments(name, *overrides)), self.folder / "runs" / name)

    def finished(self, name: str) -> Finished:
        """The run of a name in `list_commands`, which is not to be changed."""

        def make(folder: Path) -> None:
            overrides, how = self.commands[name]
            program = run_main if how else call_main
            process = program(*self.arguments(name, *overrides), **how)
            told = {"returncode": process.returncode, "stdout": process.stdout, "stderr": process.stderr}
            (folder / "process.json").write_text(json.dumps(told))

        told = json.loads((made_once(self.folder / "made" / name, make) / "process.json").read_text())
        return Finished(subprocess.CompletedProcess([], **told), self.folder / "runs" / name)

    def copy(self, name: str, new_name: str) -> Finished:
        """Copy what a run has left to another name."""
        run = self.finished(name)
        folder = self.folder / "runs" / new_name
        shutil.copytree(run.folder, folder)
        return Finished(run.process, folder)


def furnish(folder: Path) -> None:
    """Write what the runs read: the config, and a tiny data set of every file-based kind."""
    write_tiny_config(folder, report=True)
    write_data_sets(folder)


def list_commands(folder: Path) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """The runs by name: the fields that they override, and what `run_main` is given, if it is called."""
    data = {
        "voc": ["data.name=voc", f"data.root={folder / 'voc'}", "task=[[person, cat], [dog]]"],
        "ade20k": ["data.name=ade20k", f"data.root={folder / 'ade20k'}", "task='149-1'"],
        "folder": ["data.name=folder", f"data.root={folder / 'folder'}", "task=[[pear, kiwi], [date]]"],
    }
    distil_only = [
        f"method.{part}=false"
        for part in ("pseudo_labels", "feature_distillation", "orthogonal", "weight_transfer")
    ]
    return {
        "shapes": (["data.num_workers=2"], {}),
        "two_ranks": ([], {"ranks": 2}),
        "joint": (["method=joint"], {"ranks": 2, "launcher": "torch.distributed.launch"}),
        "again": ([], {"ranks": 1}),
        "voc": ([*data["voc"], "method=finetune"], {}),
        "ade20k": ([*data["ade20k"], *distil_only], {}),
        "folder": ([*data["folder"], "method.orthogonal=false"], {}),
        "sliding": (SLIDING, {}),
        "diverged": (["train.lr_incremental=1e12"], {}),
    }


def write_data_sets(folder: Path) -> None:
    """Write a tiny data set of every file-based kind."""

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


def list_change_times(folder: Path) -> dict[Path, int]:
    """Change time of every file in a folder."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_weights(ours: Finished, theirs: Finished, step: int) -> None:
    ours_state, theirs_state = ours.weights(step), theirs.weights(step)
    assert ours_state.keys() == theirs_state.keys()
    assert [name for name in ours_state if not torch.equal(ours_state[name], theirs_state[name])] == []


def without_time(results: dict[str, Any]) -> dict[str, Any]:
    return {**results, "steps": [{**step, "seconds": None} for step in results["steps"]]}


def read_table(run: Finished) -> list[str]:
    """The lines of the table on the console, from its title to the mean over the steps."""
    lines = [line.rstrip() for line in run.process.stdout.splitlines()]
    title = next(number for number, line in enumerate(lines) if line.endswith("(percent)"))
    end = next(number for number, line in enumerate(lines) if number > title and line.startswith(" avg"))
    return [line for line in lines[title : end + 1] if line]


each_finished = pytest.mark.parametrize("name", ["shapes", "voc", "ade20k", "folder", "two_ranks", "joint"])
