"""main.sh: which runs a sweep starts, from which base steps, and what it does with finished and failed ones."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from methods import METHODS
from methods.lwf import LwF
from tests.support.ours import OURS
from tests.support.paths import ROOT
from tools.sweep import Group, expand, main, read_environment, read_sweep
from trainer.config import load_config

# Stands in for Python: runs the sweep itself, notes the commands of its runs, fails where an argument is $FAIL_ON, and
# sees 3 GPUs. With TERMINATE it tells the sweep to end, as a scheduler does, and saves when it is told so itself.
RECORDER = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 3; exit; fi
if [[ $2 == tools.sweep ]]; then exec "$REAL_PYTHON" "$@"; fi
(IFS=$'\\t'; echo "$PWD"$'\\t'"$*") >> "$RECORD"
for argument in "$@"; do [[ $argument != "${FAIL_ON-}" ]] || exit 7; done
if [[ ${TERMINATE-} ]]; then
    trap 'exit 143' TERM
    kill -TERM $PPID
    while :; do :; done
fi
"""
SETTINGS_OF_MAIN_SH = {
    *(
        "NUM_GPUS",
        "JOBS",
        "PORT",
        "VOC_TASKS",
        "ADE_TASKS",
        "SETTINGS",
        "METHOD",
        "METHODS",
        "VOC_CONFIG",
        "ADE_CONFIG",
    ),
    *("SEEDS", "BASE", "EXTRA", "SUFFIX", "KEEP_GOING", "DRY_RUN"),
}


class Sweep:
    """What `bash main.sh` did: its exit code and messages, and the arguments of every command it started.

    by_bash: start main.sh, which finds its own folder; otherwise only what it starts, in this process.
    """

    def __init__(self, folder: Path, *arguments: str | Path, by_bash: bool = False, **variables: str) -> None:
        recorder, record = folder / "python", folder / "record"
        recorder.write_text(RECORDER)
        recorder.chmod(0o755)
        record.write_text("")
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_MAIN_SH}
        environment |= {
            "PYTHON": str(recorder),
            "RECORD": str(record),
            "REAL_PYTHON": sys.executable,
            **variables,
        }
        if by_bash:
            process = subprocess.run(
                ["bash", str(ROOT / "main.sh"), *map(str, arguments)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            self.returncode, self.stdout, self.stderr = process.returncode, process.stdout, process.stderr
        else:
            out, err = io.StringIO(), io.StringIO()
            with (
                patch.dict(os.environ, environment, clear=True),
                redirect_stdout(out),
                redirect_stderr(err),
            ):
                try:
                    self.returncode = main([*map(str, arguments)])
                except SystemExit as end:
                    self.returncode = int(end.code or 0)
            self.stdout, self.stderr = out.getvalue(), err.getvalue()
        lines = [line.split("\t") for line in record.read_text().splitlines()]
        self.folders = {line[0] for line in lines}
        self.commands = [line[1:] for line in lines]

    @property
    def names(self) -> list[str]:
        """Log names, in the order of the runs."""
        return [command[command.index("--log") + 1] for command in self.commands]


def bases(groups: list[Group], environment: dict[str, str]) -> dict[str, str]:
    """The run from whose base step each run starts, its own where it trains it, in the order of the runs."""
    found = {}
    for run in expand(groups, environment):
        named = [argument for argument in run.arguments if argument.startswith("init_from=")]
        found[run.config.log] = Path(named[-1]).parent.parent.name if named else run.config.log
    return found


def write_sweep(folder: Path, **values: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_default_sweep_runs_every_documented_task_in_order_on_all_gpus(tmp_path: Path) -> None:
    elsewhere = f"output_dir={tmp_path}"  # runs of this folder would be passed over
    sweep = Sweep(tmp_path, by_bash=True, EXTRA=f"--set {elsewhere}")
    voc = [
        f"voc_{task}_{setting}_mbs"
        for setting in ("overlap", "disjoint")
        for task in ("19-1", "15-5", "15-1", "10-1")
    ]
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.names == [*voc, *(f"ade_{task}_overlap_mbs" for task in ("100-50", "100-10", "50-50"))]
    assert sweep.folders == {str(ROOT)}
    assert sweep.commands[2] == [
        *("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=3"),
        *("--", "main.py"),
        *("--config", "./configs/voc.yaml", "--log", "voc_15-1_overlap_mbs"),
        *("--set", "task='15-1'", "--set", "setting=overlap", "--set", "method=mbs", "--set", elsewhere),
    ]
    assert sweep.commands[-1] == [
        *("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=3"),
        *("--", "main.py"),
        *("--config", "./configs/ade20k.yaml", "--log", "ade_50-50_overlap_mbs"),
        *("--set", "task='50-50'", "--set", "setting=overlap", "--set", "method=mbs", "--set", elsewhere),
    ]


def test_environment_chooses_gpus_port_tasks_settings_method_configs_arguments_and_names(
    tmp_path: Path,
) -> None:
    sweep = Sweep(
        tmp_path,
        NUM_GPUS="2",
        PORT="12345",
        VOC_TASKS="15-1 5-3",
        ADE_TASKS="100-5",
        SETTINGS="partitioned",
        METHOD="finetune",
        VOC_CONFIG="./configs/voc_segmenter.yaml",
        ADE_CONFIG="./configs/ade20k_segmenter.yaml",
        EXTRA=f"--set seed=1 --device cpu --set output_dir={tmp_path}",
        SUFFIX="_seed1",
    )
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.names == [
        "voc_15-1_partitioned_finetune_seed1",
        "voc_5-3_partitioned_finetune_seed1",
        "ade_100-5_overlap_finetune_seed1",
    ]
    assert sweep.commands[1] == [
        *("-m", "torch.distributed.run", "--master_port=12345", "--nproc_per_node=2", "--", "main.py"),
        *("--config", "./configs/voc_segmenter.yaml", "--log", "voc_5-3_partitioned_finetune_seed1"),
        *("--set", "task='5-3'", "--set", "setting=partitioned", "--set", "method=finetune"),
        *("--set", "seed=1", "--device", "cpu", "--set", f"output_dir={tmp_path}"),
    ]
    assert sweep.commands[2][sweep.commands[2].index("--config") + 1] == "./configs/ade20k_segmenter.yaml"


def test_methods_and_seeds_share_base_steps_sigmoids_one_that_measured_its_classes() -> None:
    variables = {"VOC_TASKS": "15-1", "ADE_TASKS": "", "SETTINGS": "overlap", "SEEDS": "0 1"}
    variables |= {"METHODS": "mbs mib ssul dkd star barm"}
    start = "voc_15-1_overlap_"
    found = bases(read_environment(variables), variables)
    assert found == {
        f"{start}{method}_seed{seed}": f"{start}{base}_seed0"
        for method, base in (
            ("mbs", "mbs"),
            ("mib", "mbs"),
            ("dkd", "dkd"),
            ("star", "star"),
            ("ssul", "ssul"),
            ("barm", "star"),
        )
        for seed in (0, 1)
    }
    order = list(found)
    assert all(order.index(base) <= order.index(name) for name, base in found.items())
    own = bases(read_environment(variables), variables | {"BASE": "seed"})
    assert own[f"{start}barm_seed1"] == own[f"{start}star_seed1"] == f"{start}star_seed1"
    assert own[f"{start}mib_seed1"] == f"{start}mbs_seed1"
    given = bases(
        read_environment(variables), variables | {"EXTRA": "--set init_from=runs/a/checkpoints/step_0.pth"}
    )
    assert set(given.values()) == {"a"}


class OwnBase(LwF):
    """A method whose base step trains the network otherwise than others do."""


def test_a_base_step_that_trains_the_network_otherwise_is_shared_by_equal_options_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OwnBase, "base_step", OwnBase)
    monkeypatch.setitem(METHODS, "lwf", OwnBase)
    weights = {
        "a": [],
        "b": ["method.output_weight=3"],
        "c": ["method.output_weight=3", "train.freeze_bn=false"],
    }
    config = "configs/voc.yaml"
    groups = [
        Group(config=config, name="own", methods=["lwf"], variants=weights),
        Group(config=config, name="plain", methods=["mbs", "mib"]),
    ]
    assert bases(groups, {}) == {
        "own_lwf_a": "own_lwf_a",
        "own_lwf_b": "own_lwf_b",
        "own_lwf_c": "own_lwf_b",
        "plain_mbs": "plain_mbs",
        "plain_mib": "plain_mbs",
    }


def test_a_sweep_that_grows_leaves_what_is_there_as_it_is_and_starts_the_new_runs_from_its_base_step(
    tmp_path: Path,
) -> None:
    def bases(methods: str, seeds: str) -> dict[str, str | None]:
        variables = {
            "VOC_TASKS": "15-1",
            "ADE_TASKS": "",
            "SETTINGS": "overlap",
            "METHODS": methods,
            "SEEDS": seeds,
        }
        variables["EXTRA"] = f"--set output_dir={tmp_path}"
        runs = expand(read_environment(variables), variables)
        for run in runs:  # as if they had been started
            run.config.run_dir.mkdir(exist_ok=True)
            text = json.dumps(run.config.model_dump(mode="json"))
            (run.config.run_dir / "config.yaml").write_text(text)
        base_steps = {run.config.log: run.config.init_from for run in runs}
        start = "voc_15-1_overlap_"
        return {
            name.removeprefix(start): Path(base).parts[-3] if base else None
            for name, base in base_steps.items()
        }

    mine = "voc_15-1_overlap_finetune_seed1"
    assert bases("finetune", "1") == {"finetune_seed1": None}
    grown = {"finetune_seed1": None, "mbs_seed0": mine, "mbs_seed1": mine, "finetune_seed0": mine}
    assert bases("mbs finetune", "0 1") == grown
    assert bases("ssul", "0") == {"ssul_seed0": None}
    assert bases("star ssul", "0") == {"ssul_seed0": None, "star_seed0": None}
    assert bases("mbs finetune", "0 1") == grown


def test_a_failed_run_is_listed_at_the_end_and_ends_the_sweep_if_asked(tmp_path: Path) -> None:
    variables: dict[str, Any] = {
        "VOC_TASKS": "19-1 15-5",
        "ADE_TASKS": "50-50",
        "EXTRA": f"--set output_dir={tmp_path}",
    }
    sweep = Sweep(tmp_path, FAIL_ON="task='15-5'", **variables)
    assert sweep.returncode == 1
    assert len(sweep.commands) == 5
    listed = sweep.stderr.strip().splitlines()[-1]
    assert listed == "main.sh: failed: voc_15-5_overlap_mbs voc_15-5_disjoint_mbs"
    sweep = Sweep(tmp_path, FAIL_ON="task='15-5'", KEEP_GOING="0", **variables)
    assert sweep.returncode == 1
    assert sweep.names == ["voc_19-1_overlap_mbs", "voc_15-5_overlap_mbs"]
    assert "voc_15-5_overlap_mbs failed" in sweep.stderr


def test_a_sweep_that_is_told_to_end_passes_it_on_and_starts_nothing_more(tmp_path: Path) -> None:
    extra = f"--set output_dir={tmp_path}"
    sweep = Sweep(tmp_path, VOC_TASKS="19-1 15-5", ADE_TASKS="", EXTRA=extra, TERMINATE="1")
    assert sweep.returncode == 143
    assert sweep.names == ["voc_19-1_overlap_mbs"]


def test_a_sweep_file_passes_finished_runs_over_and_starts_the_rest_from_their_base_step(
    finished_run: Path,
) -> None:
    folder = finished_run.parents[1]
    without = {"without orthogonal": ["method.orthogonal=false"]}
    runs = [{}, {"variants": without, "settings": ["overlap"]}]
    path = write_sweep(folder, config=str(folder / "tiny.yaml"), name="run", runs=runs)
    name = "run_overlap_without_orthogonal"
    dry = Sweep(folder, path, "--dry-run", NUM_GPUS="1")
    assert dry.returncode == 0, dry.stderr
    first, second = dry.stdout.splitlines()
    assert first == "# run has finished"
    assert f"--log {name} " in second
    assert not dry.commands
    sweep = Sweep(folder, "sweep.yaml", by_bash=True)
    assert sweep.returncode == 0, sweep.stderr
    assert "== run (1/2) has finished" in sweep.stdout
    (command,) = sweep.commands
    assert command[command.index("--log") :] == [
        *("--log", name, "--set", "setting=overlap", "--set", 'variant="without orthogonal"'),
        *("--set", "method.orthogonal=false"),
        *("--set", f"init_from={finished_run / 'checkpoints' / 'step_0.pth'}"),
    ]


def test_a_finished_run_of_another_config_is_a_failure_and_is_not_touched(
    finished_run: Path, tmp_path: Path
) -> None:
    config = str(finished_run.parents[1] / "tiny.yaml")
    path = write_sweep(tmp_path, config=config, name="run", set=["train.lr_base=0.5"])
    sweep = Sweep(tmp_path, path)
    assert sweep.returncode == 1
    assert not sweep.commands
    assert "run: holds a run with another config (train.lr_base: 0.01 → 0.5" in sweep.stderr


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"config": "configs/demo.yaml", "method": ["mbs"]},
            "sweep.yaml: method: unknown key; did you mean 'methods'",
        ),
        ({"methods": ["mbs"]}, "sweep.yaml: config: missing, has no default"),
        ({"config": "configs/demo.yaml", "seeds": "0"}, "sweep.yaml: seeds: Input should be a valid list"),
        ({"config": "configs/none.yaml"}, "none.yaml: no such config file"),
        (
            {"config": "configs/demo.yaml", "methods": ["lfw"]},
            "sweep_lfw: --set: method.name: there is no 'lfw'",
        ),
        ({"config": "configs/demo.yaml", "seeds": [True]}, r"sweep.yaml: seeds\.0: .* found true"),
        (
            {"config": "configs/demo.yaml", "variants": {"a": "seed=1"}},
            "sweep.yaml: variants: a: expected a list of --set arguments",
        ),
        (
            {"config": "configs/demo.yaml", "variants": "configs/demo.yaml"},
            "variants: configs/demo.yaml: task: expected a list of --set arguments",
        ),
        (
            {"config": "configs/demo.yaml", "methods": ["plop"], "set": ["method.orthogonal=false"]},
            "sweep_plop: --set: method.orthogonal: unknown key; it is a field of method mbs.*, not of plop",
        ),
        (
            {"config": "configs/demo.yaml", "methods": ["mbs"], "variants": {"a": ["method=plop"]}},
            "sweep_mbs_a: --set method=plop: the sweep varies method itself; keep one",
        ),
        ({"config": "configs/demo.yaml", "runs": [{}, {}]}, "sweep: two runs have this name"),
        ({"config": "configs/demo.yaml", "runs": {"a": {}}}, "sweep.yaml: runs: expected a list"),
    ],
)
def test_what_is_wrong_with_a_sweep_file_is_told_before_anything_starts(
    values: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=expected):
        expand(read_sweep(write_sweep(tmp_path, **values)), {})


def test_main_sh_tells_it_with_exit_code_2(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, write_sweep(tmp_path, config="configs/demo.yaml", colour="red"))
    assert sweep.returncode == 2
    assert sweep.stderr.startswith("error: ")
    assert "Traceback" not in sweep.stderr


def test_the_ablation_switches_every_part_by_itself_over_one_base_step() -> None:
    groups = read_sweep(ROOT / "configs/ablation/voc.yaml")
    options = {run.config.variant: run.config.method.model_dump() for run in expand(groups, {})}
    assert set(bases(groups, {}).values()) == {"voc_ablation_15-1_overlap_1_fine-tuning"}
    assert len({repr(fields) for fields in options.values()}) == len(options) == 16
    full, nothing = options["9 + weight transfer"], options["1 fine-tuning"]
    assert full == load_config(ROOT / "configs/voc.yaml").method.model_dump()
    # Fields of pre-tuning, which is off, say how it would be.
    parts = [name for name, value in full.items() if value is True and not name.startswith("pre_tuning_")]
    assert [name for name in parts if nothing[name]] == ["selective", "adaptive", "label_guided"]
    differing = {
        variant: [name for name in full if fields[name] != full[name]] for variant, fields in options.items()
    }
    without = [names for variant, names in differing.items() if variant.startswith("without")]
    assert sorted(without) == sorted([name] for name in parts if name != "weight_transfer")
    assert differing["8 + orthogonal"] == ["weight_transfer"]
    animals = bases(read_sweep(ROOT / "configs/ablation/voc_animals.yaml"), {})
    assert len(animals) == 3 * 16
    assert set(animals.values()) == {"animals_ablation_1_fine-tuning_seed0"}


def test_the_comparison_holds_every_method_in_both_settings() -> None:
    groups = read_sweep(ROOT / "configs/comparison/voc_animals.yaml")
    kinds = [(run.config.method.name, run.config.setting) for run in expand(groups, {})]
    compared = OURS["method"] - {"ridge"}  # which trains no network
    assert set(kinds) == {(method, setting) for method in compared for setting in ("overlap", "disjoint")}
    assert all(kinds.count(kind) == 3 for kind in kinds)
    assert set(bases(groups, {}).values()) == {
        f"animals_{setting}_{method}_seed0"
        for setting in ("overlap", "disjoint")
        for method in ("mbs", "star", "dkd", "dft", "ssul", "ssul_ucb")
    }


def test_torchrun_leaves_the_options_of_main_py_alone() -> None:
    # Without the --, argparse of Python 3.11 takes --log for an abbreviation of torchrun's own options.
    from torch.distributed.run import get_args_parser

    options = ["--config", "x", "--log", "y", "--set", "seed=1", "--device", "cpu", "--dry-run", "--debug"]
    arguments = get_args_parser().parse_args(["--nproc_per_node=2", "--", "main.py", *options])
    assert (arguments.training_script, arguments.training_script_args) == ("main.py", options)
