"""A process that is killed or told to end is continued by its command, bit for bit, on one rank and on two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import (
    ROOT,
    find_free_port,
    finish,
    read_until,
    run_main,
    set_fields,
    start_main,
    write_tiny_config,
)
from tests.support.training import outcome
from trainer.progress import progress_paths

LONG = ("train.num_epochs=30", "save_every=5", "logging.every=3", "train.momentum=0.9")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 150 iterations that nothing happened to; like all it is compared with, on one thread."""
    folder = tmp_path_factory.mktemp("long")
    process = run_main(*command(folder, "long"))
    assert process.returncode == 0, process.stderr
    return folder / "runs" / "long"


def command(folder: Path, log: str, *overrides: str) -> list[str]:
    return ["--config", str(write_tiny_config(folder)), "--log", log, *set_fields(*LONG, *overrides)]


def test_a_process_killed_at_any_moment_is_continued_by_its_command_whatever_the_workers(
    tmp_path: Path, long_run: Path
) -> None:
    process = start_main(*command(tmp_path, "killed", "data.num_workers=2"))
    read_until(process, r"step 0: (\d{2})/90")
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    again = run_main(*command(tmp_path, "killed", "data.num_workers=0"))
    assert again.returncode == 0, again.stderr
    assert "goes on after" in again.stdout
    assert outcome(tmp_path / "runs" / "killed") == outcome(long_run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_saved_and_the_same_command_continues_it(
    tmp_path: Path, long_run: Path, number: signal.Signals, code: int
) -> None:
    process = start_main(*command(tmp_path, "signalled", "save_every=100000", "data.num_workers=1"))
    read_until(process, r"step 0: (\d{2})/90")
    process.send_signal(number)
    returned, rest = finish(process)
    assert returned == code, rest
    assert f"{number.name}: finishing the iteration, then saving" in rest
    assert "Traceback" not in rest
    folder = tmp_path / "runs" / "signalled"
    assert f"{number.name}: step 0 was saved after" in (folder / "log.txt").read_text()
    assert len(progress_paths(folder, 0)) == 1
    again = run_main(*command(tmp_path, "signalled"))
    assert again.returncode == 0, again.stderr
    assert outcome(folder) == outcome(long_run)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the long run on two ranks."""
    folder = tmp_path_factory.mktemp("two_ranks")
    process = run_main(*command(folder, "whole"), ranks=2)
    assert process.returncode == 0, process.stderr
    return folder / "runs" / "whole"


def start_ranks(*arguments: str) -> list[subprocess.Popen[bytes]]:
    """Start two ranks without a launcher that would end one for the other."""
    port = find_free_port()
    return [start_main(*arguments, rank=rank, ranks=2, port=port) for rank in range(2)]


def test_a_signal_to_one_rank_saves_and_ends_both_and_they_continue_bit_for_bit(
    tmp_path: Path, two_ranks: Path
) -> None:
    first, second = start_ranks(*command(tmp_path, "ranks"))
    read_until(first, r"step 0: (\d{2})/90")
    second.send_signal(signal.SIGTERM)
    assert finish(second)[0] == 143
    assert finish(first)[0] == 143
    for process in start_ranks(*command(tmp_path, "ranks", "data.num_workers=1")):
        code, rest = finish(process)
        assert code == 0, rest
    assert outcome(tmp_path / "runs" / "ranks") == outcome(two_ranks)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_other_with_its_name(
    tmp_path: Path, number: signal.Signals
) -> None:
    first, second = start_ranks(*command(tmp_path, "lost", "distributed.timeout=4"))
    try:
        read_until(first, r"step 0: (\d{2})/90")
        second.send_signal(number)
        code, rest = finish(first)
    finally:
        second.kill()
        second.communicate()
    assert code == 2
    assert "error: rank 1 of 2 has died or has not answered for 4 s (distributed.timeout)" in rest
    assert "Traceback" not in rest


def test_a_launcher_that_restarts_a_dead_rank_continues_from_the_last_save(
    tmp_path: Path, two_ranks: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1"]
    launcher += [f"--master_port={find_free_port()}", "--", str(ROOT / "main.py"), "--device", "cpu"]
    process = subprocess.Popen(
        [*launcher, *command(tmp_path, "restarted")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0.01"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    read_until(process, r"step 0: (\d{2})/90")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, rest = finish(process)
    assert code == 0, rest
    folder = tmp_path / "runs" / "restarted"
    assert "goes on after" in (folder / "log.txt").read_text()
    assert outcome(folder) == outcome(two_ranks)
