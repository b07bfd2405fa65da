"""main.py as its user runs it: tiny configs, and processes of their own."""

from __future__ import annotations

import importlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import yaml

import main
from tests.support.paths import ROOT

# What a launcher leaves in the environment would make a single process wait for others.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def write_tiny_config(folder: Path, report: bool = False) -> Path:
    """Write a config that trains in a second into `folder` and return its path; its runs go to folder/runs.

    report: whether plots and report.html are drawn, which takes longer than the rest.

    Two steps on drawn images of 32 pixels, the classes not in the order of the data set.
    """
    config = {
        "task": [["ring", "disc"], ["star", "cross"]],
        "output_dir": str(folder / "runs"),
        "data": {
            "name": "shapes",
            "num_workers": 0,
            "num_train": 16,
            "num_val": 7,
            "image_size": 32,
        },
        "model": {"backbone": "test_resnet", "pretrained": False, "channels": 8},
        "train": {
            "batch_size": 4,
            "num_epochs": 1,
            "crop_size": 32,
            "lr_base": 0.01,
            "lr_incremental": 0.001,
        },
        "logging": {"every": 1, "num_panels": 2, "report": report},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def set_fields(*overrides: str) -> list[str]:
    """Return the arguments that override fields of the config."""
    return [argument for override in overrides for argument in ("--set", override)]


def run_main(
    *arguments: str | Path, ranks: int = 1, launcher: str = "torch.distributed.run"
) -> subprocess.CompletedProcess[str]:
    """Run main.py on the CPU, a thread a rank; more than one rank through a launcher, which is a module's name."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", launcher, f"--nproc_per_node={ranks}", f"--master_port={find_free_port()}", "--"]
    command += [str(ROOT / "main.py"), "--device", "cpu", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def call_main(*arguments: str | Path, device: str = "cpu") -> subprocess.CompletedProcess[str]:
    """What `run_main` does, in this process, which has PyTorch loaded already."""
    return call(main.main, "main.py", "--device", device, *arguments)


def call_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `run_tool` does, in this process."""
    return call(importlib.import_module(f"tools.{name}").main, name, *arguments)


def call(
    program: Callable[[], int | None], name: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Call a program's main function as if it were started under `name`, no launcher being about."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    command = [name, *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment, clear=True),
        patch.object(sys, "argv", command),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = program() or 0
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run python -m tools.NAME, on one thread."""
    return subprocess.run(
        [sys.executable, "-m", f"tools.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def find_free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
