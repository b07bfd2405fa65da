"""A loss, a method, a data set and a model are one file and one line each; nothing of ours breaks by them.

The files are those of docs/extending.md, written into a copy of the tree.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.docs.pages import read_toys
from tests.support.data import stripes, write_sample
from tests.support.paths import ROOT

LINES = {
    "methods/__init__.py": (
        "from methods.ssul import SSUL",
        "from methods.steady import Steady",
        '"steady": Steady,',
    ),
    "datasets/__init__.py": ("from datasets import", "from datasets import pets", '"pets": pets.SOURCE,'),
    "models/build.py": ("from models.segmenter import", "from models.tiny import Tiny", '"tiny": Tiny,'),
}
"""What is added beside each file: after this import another one, and a line in the table."""
NOT_COPIED = shutil.ignore_patterns(".git", "runs", "data_root", "__pycache__", ".*_cache", "venv", ".venv")
TABLES = [
    "tests/methods/test_base.py",
    "tests/methods/test_runs.py::test_a_tiny_run_writes_the_terms_of_its_method[steady]",
    "tests/methods/test_runs.py::test_two_micro_batches_give_the_gradient_of_the_batch[steady]",
    "tests/datasets/test_source.py",
    "tests/docs/test_configuration.py",
    "tests/docs/test_links.py",
    "tests/test_imports.py",
    "tests/test_safe_files.py",
    "tests/tools/test_sweep.py::test_the_comparison_holds_every_method_in_both_settings",
    "tests/trainer/test_config.py",
]
"""Tests that go over the tables of methods, data sets and models, over the tree or over the fields of the config."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with a toy of each kind, and data for it."""
    copy = tmp_path_factory.mktemp("extended") / "main"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    for path, text in read_toys().items():
        (copy / path).write_text(text)
    for path, (after, added_import, line) in LINES.items():
        text = (copy / path).read_text()
        text = re.sub(
            rf"^({re.escape(after)}.*\n)", rf"\1{added_import}\n", text, count=1, flags=re.MULTILINE
        )
        text = re.sub(
            r"^((?:METHODS|DATASETS|MODELS)\b[^{]*\{)", rf"\1{line} ", text, count=1, flags=re.MULTILINE
        )
        assert line in text
        assert added_import in text
        (copy / path).write_text(text)
    for split in ("train", "val"):
        for i in range(8):
            name, mask = f"{split}_{i}", stripes(0, 1 + i % 2, height=32, width=32)
            write_sample(
                copy / f"pets/photos/{split}/{name}.jpg", copy / f"pets/masks/{split}/{name}.png", mask
            )
    (copy / "pets.yaml").write_text(yaml.safe_dump(CONFIG))
    (copy / "sweep.yaml").write_text(
        yaml.safe_dump({"config": "pets.yaml", "methods": ["steady", "mbs", "ssul"]})
    )
    return copy


CONFIG = {
    "task": [["cat"], ["dog"]],
    "method": {"name": "steady", "old_share": 0.25},
    "data": {"name": "pets", "root": "pets", "num_workers": 0},
    "model": {"name": "tiny", "pretrained": False, "channels": 8},
    "train": {"batch_size": 4, "num_epochs": 1, "crop_size": 32, "lr_base": 0.01, "lr_incremental": 0.01},
    "logging": {"every": 1, "num_panels": 0},
}


END = "\n-- end of a command --\n"
CALL_EACH = f"""
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
    except SystemExit as end:
        if end.code:
            raise
    print({END!r}, end="", flush=True)
"""
RUN = Path("runs/pets")
COMMANDS = {
    "run": ["main", "--device", "cpu", "--config", "pets.yaml"],
    "table": ["tools.summarize", str(RUN), "--group-by", "method,dataset"],
    "masks": ["tools.predict", str(RUN / "checkpoints/step_1.pth"), "pets/photos/val", "--output", "out"],
    "sweep": ["tools.sweep", "sweep.yaml", "--dry-run"],
    "configuration": ["tools.config_table"],
    "tests": ["pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TABLES],
}


@pytest.fixture(scope="module")
def said(copy: Path) -> dict[str, str]:
    """What commands say in the copy, one after another in one process; none of them fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "NUM_GPUS": "1"}
    command = [sys.executable, "-c", CALL_EACH, json.dumps(list(COMMANDS.values()))]
    found = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return dict(zip(COMMANDS, found.stdout.split(END)[:-1], strict=True))


def test_two_steps_train_with_an_own_divisor_part_state_and_end_of_the_step(
    copy: Path, said: dict[str, str]
) -> None:
    run_dir = copy / RUN
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    terms = [
        set(line) - {"step", "iteration", "epoch", "loss", "lr", "images_per_second"}
        for line in lines
        if "lr" in line
    ]
    assert terms == [{"cross_entropy"}] * 1 + [{"cross_entropy", "distance", "count"}] * 1
    base, last = (torch.load(run_dir / f"checkpoints/step_{step}.pth", weights_only=True) for step in (0, 1))
    assert (base["parts"], base["method_state"]) == ({}, {})
    assert last["parts"].keys() == {"counter.weight", "counter.bias"}
    assert last["method_state"] == {"times_averaged": torch.ones(())}
    results = json.loads((run_dir / "results.json").read_text())
    assert (results["method"], results["dataset"], len(results["steps"])) == ("steady", "pets", 2)


def test_the_commands_know_what_was_added(copy: Path, said: dict[str, str]) -> None:
    assert "| steady | pets | 1 |" in said["table"]
    assert len(list((copy / "out").rglob("*.png"))) >= 8
    bases = {
        line.split("--log ")[1].split()[0]: re.findall(r"init_from=(\S+)", line)
        for line in said["sweep"].splitlines()
    }
    assert bases == {
        "sweep_steady": [],
        "sweep_mbs": ["runs/sweep_steady/checkpoints/step_0.pth"],
        "sweep_ssul": [],
    }, "one base step for softmaxes, one for sigmoids"
    configuration = said["configuration"]
    assert "| `method.old_share` | `0.5` | Share of the old weights at the end of a step. |" in configuration
    assert "`voc`, `ade20k`, `cityscapes`, `folder`, `shapes`" in configuration


def test_no_test_that_goes_over_the_tables_breaks(said: dict[str, str]) -> None:
    assert "[100%]" in said["tests"]
    assert " failed" not in said["tests"]
