"""main.sh: which runs the sweep starts, under which names, and what it does after a failure."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Stands in for Python: notes its arguments, fails where one of them is $FAIL_ON, and sees 3 GPUs.
RECORDER = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 3; exit; fi
(IFS=$'\\t'; echo "$PWD"$'\\t'"$*") >> "$RECORD"
for argument in "$@"; do [[ $argument != "${FAIL_ON-}" ]] || exit 7; done
"""
SETTINGS_OF_MAIN_SH = {
    *("NUM_GPUS", "PORT", "VOC_TASKS", "ADE_TASKS", "SETTINGS", "METHOD", "VOC_CONFIG", "ADE_CONFIG"),
    *("EXTRA", "SUFFIX", "KEEP_GOING"),
}


class Sweep:
    """What `bash main.sh` did: its exit code and messages, and the arguments of every command it started."""

    def __init__(self, folder: Path, **variables: str) -> None:
        recorder, record = folder / "python", folder / "record"
        recorder.write_text(RECORDER)
        recorder.chmod(0o755)
        record.write_text("")
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_MAIN_SH}
        environment |= {"PYTHON": str(recorder), "RECORD": str(record), **variables}
        # From another folder: main.sh finds its own.
        process = subprocess.run(
            ["bash", str(ROOT / "main.sh")],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.returncode, self.stdout, self.stderr = process.returncode, process.stdout, process.stderr
        lines = [line.split("\t") for line in record.read_text().splitlines()]
        self.folders = {line[0] for line in lines}
        self.commands = [line[1:] for line in lines]

    @property
    def names(self) -> list[str]:
        """Log names, in the order of the runs."""
        return [command[command.index("--log") + 1] for command in self.commands]


def test_default_sweep_runs_every_documented_task_in_order_on_all_gpus(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    voc = [
        f"voc_{task}_{setting}_mbs"
        for setting in ("overlap", "disjoint")
        for task in ("19-1", "15-5", "15-1", "10-1")
    ]
    assert sweep.returncode == 0
    assert sweep.names == [*voc, *(f"ade_{task}_overlap_mbs" for task in ("100-50", "100-10", "50-50"))]
    assert sweep.folders == {str(ROOT)}
    assert sweep.commands[2] == [
        *("-m", "torch.distributed.run", "--nproc_per_node=3", "--master_port=29500", "--", "main.py"),
        *("--config", "./configs/voc.yaml", "--log", "voc_15-1_overlap_mbs"),
        *("--set", "task='15-1'", "--set", "setting=overlap", "--set", "method=mbs"),
    ]
    assert sweep.commands[-1] == [
        *("-m", "torch.distributed.run", "--nproc_per_node=3", "--master_port=29500", "--", "main.py"),
        *("--config", "./configs/ade20k.yaml", "--log", "ade_50-50_overlap_mbs"),
        *("--set", "task='50-50'", "--set", "setting=overlap", "--set", "method=mbs"),
    ]


def test_environment_chooses_gpus_port_tasks_settings_method_configs_arguments_and_names(
    tmp_path: Path,
) -> None:
    sweep = Sweep(
        tmp_path,
        NUM_GPUS="2",
        PORT="12345",
        VOC_TASKS="15-1 5-3",
        ADE_TASKS="",
        SETTINGS="partitioned",
        METHOD="finetune",
        VOC_CONFIG="./my.yaml",
        EXTRA="--set seed=1 --device cpu",
        SUFFIX="_seed1",
    )
    assert sweep.returncode == 0
    assert sweep.names == ["voc_15-1_partitioned_finetune_seed1", "voc_5-3_partitioned_finetune_seed1"]
    assert sweep.commands[1] == [
        *("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=12345", "--", "main.py"),
        *("--config", "./my.yaml", "--log", "voc_5-3_partitioned_finetune_seed1"),
        *("--set", "task='5-3'", "--set", "setting=partitioned", "--set", "method=finetune"),
        *("--set", "seed=1", "--device", "cpu"),
    ]


def test_ade20k_alone_runs_under_its_own_config(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, VOC_TASKS="", ADE_TASKS="100-5", ADE_CONFIG="./ade.yaml")
    assert sweep.names == ["ade_100-5_overlap_mbs"]
    assert sweep.commands[0][sweep.commands[0].index("--config") + 1] == "./ade.yaml"


def test_sweep_stops_at_the_first_failure(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, FAIL_ON="task='15-5'", SETTINGS="overlap")
    assert sweep.returncode == 1
    assert sweep.names == ["voc_19-1_overlap_mbs", "voc_15-5_overlap_mbs"]
    assert "voc_15-5_overlap_mbs failed" in sweep.stderr


def test_keep_going_runs_the_rest_and_lists_the_failures(tmp_path: Path) -> None:
    variables = {"VOC_TASKS": "19-1 15-5", "ADE_TASKS": "50-50", "KEEP_GOING": "1"}
    sweep = Sweep(tmp_path, FAIL_ON="task='15-5'", **variables)
    assert sweep.returncode == 1
    assert len(sweep.commands) == 5
    listed = sweep.stderr.strip().splitlines()[-1]
    assert listed == "main.sh: failed: voc_15-5_overlap_mbs voc_15-5_disjoint_mbs"


def test_torchrun_leaves_the_options_of_main_py_alone() -> None:
    # Without the --, argparse of Python 3.11 takes --log for an abbreviation of torchrun's own options.
    from torch.distributed.run import get_args_parser

    options = ["--config", "x", "--log", "y", "--set", "seed=1", "--device", "cpu", "--dry-run", "--debug"]
    arguments = get_args_parser().parse_args(["--nproc_per_node=2", "--", "main.py", *options])
    assert (arguments.training_script, arguments.training_script_args) == ("main.py", options)
