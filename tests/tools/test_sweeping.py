"""tools/sweeping: runs side by side, beside other sweeps, and as jobs of Slurm."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tools.sweep import expand, read_environment
from tools.sweeping import machine, runner
from tools.sweeping.base_steps import PlannedRun, own_base
from tools.sweeping.machine import Machine, find_machine
from tools.sweeping.runner import CLAIM, Entry, Runner
from tools.sweeping.slurm import write_scripts
from tools.sweeping.table import Table
from utils.lock import lock

# Stands in for a run: notes its name and its GPUs, writes its base step, and ends when $TOGETHER runs have started.
RUN = """#!/usr/bin/env bash
while [[ $1 != --log ]]; do shift; done
echo "$2 ${CUDA_VISIBLE_DEVICES-}" >> "$RECORD"
[[ $2 != ${FAILS-} ]] || exit 7
mkdir -p "$RUNS/$2/checkpoints"
touch "$RUNS/$2/checkpoints/step_0.pth"
until (( $(wc -l < "$RECORD") >= TOGETHER )); do :; done
echo "$2 speaks"
touch "$RUNS/$2/done"
"""
START = "voc_15-1_overlap_"


def plan(folder: Path, methods: str, seeds: str = "0") -> list[PlannedRun]:
    """Runs of one task, all of which start from the base step of the first."""
    variables = {
        "VOC_TASKS": "15-1",
        "ADE_TASKS": "",
        "SETTINGS": "overlap",
        "METHODS": methods,
        "SEEDS": seeds,
    }
    variables["EXTRA"] = f"--set output_dir={folder / 'runs'}"
    return expand(read_environment(variables), variables)


class Place:
    """A folder in which runs are stood in for, and what the sweep tells."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.record = folder / "record"
        self.record.write_text("")
        self.script = folder / "run"
        self.script.write_text(RUN)
        self.script.chmod(0o755)
        for name, value in (("RECORD", self.record), ("RUNS", folder / "runs"), ("TOGETHER", 1)):
            monkeypatch.setenv(name, str(value))
        self.told: list[str] = []

    def machine(self, *gpus: str) -> Machine:
        """One run at a time a GPU."""
        return Machine([str(self.script)], 1, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus])

    def run(
        self,
        runs: list[PlannedRun],
        *gpus: str,
        tell: Callable[[str], object] | None = None,
        keep_going: bool = True,
    ) -> list[str]:
        """The names of those that failed."""
        return Runner(runs, self.machine(*gpus), keep_going, tell or self.told.append).run()

    @property
    def started(self) -> list[list[str]]:
        """Name and GPU of every run that was started, in order."""
        return [line.removeprefix(START).split() for line in self.record.read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_runs_stand_side_by_side_on_gpus_of_their_own_as_soon_as_their_base_step_is_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGETHER", "2")  # the first does not end before a second one runs beside it
    assert place.run(plan(place.folder, "mbs finetune", "0 1"), "3", "5") == []
    assert place.started[:2] == [["mbs_seed0", "3"], ["mbs_seed1", "5"]]
    assert sorted(name for name, _ in place.started[2:]) == ["finetune_seed0", "finetune_seed1"]
    assert f"== {START}mbs_seed1 (2/4) waits for the base step of {START}mbs_seed0" in place.told
    assert f"== {START}mbs_seed1 (2/4) runs, GPU 5" in place.told
    table = place.told[-1].splitlines()
    assert [line.split()[:2] for line in table[1:5]] == [
        [f"{START}{name}", "finished"]
        for name in ("mbs_seed0", "mbs_seed1", "finetune_seed0", "finetune_seed1")
    ]
    assert table[5] == "4 finished"
    console = place.folder / "runs" / f"{START}mbs_seed1" / "console.txt"
    assert console.read_text() == f"{START}mbs_seed1 speaks\n"


def test_runs_whose_base_step_does_not_come_fail_with_the_reason_and_others_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", f"{START}mbs_seed0")
    runs = [*plan(place.folder, "mbs finetune"), *plan(place.folder, "ssul")]
    failed = place.run(runs, "0", "1")
    assert failed == [f"{START}mbs_seed0", f"{START}finetune_seed0"]
    assert sorted(name for name, _ in place.started) == ["mbs_seed0", "ssul_seed0"]
    err = capfd.readouterr().err
    assert f"main.sh: {START}mbs_seed0: exit code 7; " in err
    base = own_base(runs[0].config)
    assert f"its base step is missing, as {START}mbs_seed0 has failed without it: {base}" in err


def test_after_a_failure_nothing_more_starts_if_asked_and_what_runs_ends(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", f"{START}mbs_seed0")
    runs = [*plan(place.folder, "mbs"), *plan(place.folder, "ssul"), *plan(place.folder, "dkd")]
    assert place.run(runs, "0", "1", keep_going=False) == [f"{START}mbs_seed0"]
    assert sorted(name for name, _ in place.started) == ["mbs_seed0", "ssul_seed0"]


@pytest.mark.parametrize("name", [CLAIM, ".lock"])
@pytest.mark.parametrize("is_done", [True, False])
def test_a_run_that_is_under_way_elsewhere_is_waited_for_and_started_only_if_it_has_not_finished(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, is_done: bool
) -> None:
    (run,) = plan(place.folder, "mbs")
    monkeypatch.setattr(runner, "is_finished", lambda run: (run.config.run_dir / "done").exists())
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.01)

    def hold(end: Connection) -> None:
        with lock(run.config.run_dir, name):
            end.send("held")
            end.recv()
            if is_done:
                (run.config.run_dir / "done").touch()

    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(theirs,))
    other.start()
    ours.recv()

    def tell(text: str) -> None:
        place.told.append(text)
        if " under way" in text and len(place.told) == 1:
            ours.send("end")

    assert place.run([run], "0", "1", tell=tell) == []
    other.join()
    where = "under way" if name == ".lock" else "under way in another sweep"
    expected = f"{where}, process {other.pid} on {platform.node()}"
    assert place.told[0] == f"== {START}mbs_seed0 (1/1) {expected}"
    assert len(place.started) == (0 if is_done else 1)


def test_two_sweeps_that_race_for_the_same_runs_start_each_of_them_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan(place.folder, "mbs finetune lwf", "0 1")
    monkeypatch.setattr(runner, "is_finished", lambda run: (run.config.run_dir / "done").exists())
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.01)
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)

    def sweep() -> None:
        together.wait()
        sys.exit(len(place.run(runs, "0", "1")))

    sweeps = [context.Process(target=sweep) for _ in range(2)]
    for process in sweeps:
        process.start()
    for process in sweeps:
        process.join()
    assert [process.exitcode for process in sweeps] == [0, 0]
    names = [f"{method}_seed{seed}" for method in ("mbs", "finetune", "lwf") for seed in (0, 1)]
    assert sorted(name for name, _ in place.started) == sorted(names)


@pytest.mark.parametrize(
    ("variables", "jobs", "gpus", "processes", "places"),
    [
        ({}, "1", 4, 4, [{}]),
        ({"NUM_GPUS": "2"}, "1", 4, 2, [{}]),
        ({}, "2", 4, 2, [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]),
        ({}, "auto", 3, 1, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "012"]),
        ({"NUM_GPUS": "2", "CUDA_VISIBLE_DEVICES": "7,6,5"}, "auto", 3, 2, [{}]),
        (
            {"NUM_GPUS": "1", "CUDA_VISIBLE_DEVICES": "7,GPU-a1"},
            "auto",
            2,
            1,
            [{"CUDA_VISIBLE_DEVICES": "7"}, {"CUDA_VISIBLE_DEVICES": "GPU-a1"}],
        ),
        ({}, "auto", 0, 1, [{"OMP_NUM_THREADS": "4"}] * 2),
        ({"OMP_NUM_THREADS": "1"}, "3", 0, 1, [{"OMP_NUM_THREADS": "1"}] * 3),
        ({"NUM_GPUS": "2"}, "2", 0, 2, [{"OMP_NUM_THREADS": "2"}] * 2),
    ],
)
def test_how_runs_share_a_machine_of_8_cores(
    variables: dict[str, str],
    jobs: str,
    gpus: int,
    processes: int,
    places: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "count_gpus", lambda _: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = find_machine(variables, jobs)
    assert (found.processes, found.places) == (processes, places)
    assert found.command[-3:] == [f"--nproc_per_node={processes}", "--", "main.py"]


@pytest.mark.parametrize(
    ("variables", "jobs", "expected"),
    [
        ({}, "many", "JOBS, --jobs: found 'many'"),
        ({}, "0", "JOBS, --jobs: found '0'"),
        ({"NUM_GPUS": "two"}, "1", "NUM_GPUS: found 'two'"),
        ({"NUM_GPUS": "3"}, "2", "2 runs at a time on 3 GPUs each, but 4 GPUs are here"),
        ({"NUM_GPUS": "8"}, "auto", "1 runs at a time on 8 GPUs each, but 4 GPUs are here"),
        ({"PORT": "29500"}, "2", "PORT: several runs at a time take free ports"),
    ],
)
def test_a_machine_that_cannot_be_shared_so_is_told_before_anything_starts(
    variables: dict[str, str], jobs: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "count_gpus", lambda _: 4)
    with pytest.raises(ValueError, match=expected):
        find_machine(variables, jobs)


def test_a_python_that_cannot_count_gpus_and_a_number_that_is_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PYTHON: .*nowhere cannot count GPUs"):
        find_machine({"PYTHON": str(tmp_path / "nowhere")}, "2")
    with pytest.raises(ValueError, match="NUM_GPUS: found '0'"):
        write_scripts(tmp_path / "jobs", [], [], {"NUM_GPUS": "0"})


def test_a_signal_that_comes_while_a_run_starts_reaches_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGETHER", "99")  # so that nothing else ends it
    start = subprocess.Popen

    def told(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", told)
    with pytest.raises(SystemExit) as caught:
        place.run(plan(place.folder, "mbs"), "0")
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_terminal_shows_one_table_that_is_drawn_anew_and_fits_its_window(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [Entry(run) for run in plan(place.folder, "mbs finetune mib", "0 1")]
    entries[0].state, entries[1].state, entries[1].place = "failed", "runs", 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("tools.sweeping.table.SECONDS_BETWEEN_DRAWINGS", 0.0)
    drawn: list[str] = []
    table = Table(entries, place.machine("0", "1"), drawn.append)
    with patch("shutil.get_terminal_size", return_value=os.terminal_size((120, 6))):
        table.show()
        table.end()
    first, last = drawn
    assert [line.split("  ")[0] for line in first.splitlines()] == [
        "run",
        f"{START}mbs_seed0",
        f"{START}mbs_seed1",
        "1 failed, 1 runs, 4 waits",
    ]
    assert "runs, GPU 1" in first
    assert last.startswith("\x1b[4F\x1b[J"), "up to where the table began"
    assert len(last.splitlines()) == 1 + 6 + 1


def test_slurm_submits_every_run_after_the_one_that_trains_its_base_step(tmp_path: Path) -> None:
    runs = plan(tmp_path, "mbs finetune ssul")
    folder = tmp_path / "jobs"
    submit = write_scripts(folder, runs, [False] * 3, {"NUM_GPUS": "4"})
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text('#!/usr/bin/env bash\necho "$@" >> "$RECORD"; wc -l < "$RECORD"\n')
    (tools / "sbatch").chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(tmp_path / "record")}
    subprocess.run([submit, "--partition=gpu"], env=environment, check=True)
    names = [run.config.log for run in runs]
    assert names == [f"{START}{method}_seed0" for method in ("mbs", "finetune", "ssul")]
    assert (tmp_path / "record").read_text().splitlines() == [
        f"--parsable --partition=gpu {names[0]}.sbatch",
        f"--parsable --dependency=afterany:1 --partition=gpu {names[1]}.sbatch",
        f"--parsable --partition=gpu {names[2]}.sbatch",
    ]
    write_scripts(folder, runs, [True, False, False], {})
    assert "dependency" not in submit.read_text(), "the base step is there already"


@pytest.mark.parametrize(("is_told", "code"), [(False, 0), (False, 2), (True, 0), (True, 1)])
def test_a_job_of_slurm_that_is_told_to_end_saves_and_goes_back_into_the_queue(
    tmp_path: Path, is_told: bool, code: int
) -> None:
    (run,) = plan(tmp_path, "mbs")
    cpus = 4 * (1 + run.config.data.num_workers)
    write_scripts(tmp_path, [run], [False], {"NUM_GPUS": "4", "PYTHON": "my python"})
    script = tmp_path / f"{START}mbs_seed0.sbatch"
    for line in (
        "--gpus-per-node=4",
        f"--cpus-per-task={cpus}",
        "--requeue",
        "--signal=B:TERM@120",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}\n" in script.read_text()
    tools = tmp_path / "bin"
    tools.mkdir()
    stand_ins = {
        # Told to end, as a job is before its time limit: the batch shell is, and hands it to its steps.
        "srun": f'printf "%s\\n" "$@" > "$RECORD"; trap "exit {code}" TERM; echo $$ > "$RECORD.pid"\n'
        f"{'kill -TERM $PPID; while :; do :; done' if is_told else f'exit {code}'}",
        "scancel": 'kill -TERM "$(cat "$RECORD.pid")"',
        "scontrol": 'if [[ $1 == show ]]; then echo node7; else echo "$@" >> "$RECORD.queue"; fi',
    }
    for name, text in stand_ins.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "record"),
        **{
            "SLURM_JOB_ID": "123456",
            "SLURM_CPUS_PER_TASK": str(cpus),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[7-8]",
        },
    }
    assert subprocess.run(["bash", script], env=environment, check=False).returncode == code
    started = (tmp_path / "record").read_text().splitlines()
    assert started[:4] == [f"--cpus-per-task={cpus}", "my python", "-m", "torch.distributed.run"]
    assert "--rdzv_endpoint=node7:23456" in started
    assert {"--nnodes=2", "--nproc_per_node=4"} < set(started)
    assert started[started.index("--") + 1 :] == ["main.py", *run.arguments]
    queue = tmp_path / "record.queue"
    assert (queue.read_text() if queue.exists() else "") == ("requeue 123456\n" if is_told and code else "")
