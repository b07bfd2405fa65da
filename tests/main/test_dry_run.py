"""What is only asked, by --dry-run and --help, is answered at once and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

import main
from datasets.shapes import ShapesDataset
from tests.support.cli import call_main
from tests.support.runs import CLASSES_OF, Workplace, list_change_times


def test_dry_run_prints_config_and_steps_and_writes_nothing(place: Workplace) -> None:
    arguments = place.arguments("dry", "method.orthogonal_weight=0.5", "train.num_epochs_incremental=3")
    outcome = call_main(*arguments, "--dry-run")
    assert outcome.returncode == 0
    assert not (place.folder / "runs" / "dry").exists()
    text, table, sizes = outcome.stdout.split("\n\n")
    config = yaml.safe_load(text)
    assert config["train"]["batch_size"] == 4
    method = config["method"]
    assert (method["name"], method["orthogonal_weight"], method["weight_transfer"]) == ("mbs", 0.5, True)
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


def test_dry_run_leaves_a_finished_run_alone(place: Workplace) -> None:
    before = list_change_times(place.finished("shapes").folder)
    assert call_main(*place.arguments("shapes"), "--dry-run").returncode == 0
    assert list_change_times(place.finished("shapes").folder) == before


def test_the_help_waits_for_no_large_library() -> None:
    command = [sys.executable, "-X", "importtime", str(Path(main.__file__)), "--help"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "argparse" in listed
    assert [name for name in ("torch", "plotly", "jinja2", "numpy") if f" {name}\n" in listed] == []
