"""A process that is killed or told to end is continued by its command, bit for bit, on one rank and on two."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.cli import call_main, find_free_port, set_fields, write_tiny_config
from tests.support.struck import (
    EVALUATION,
    SAVING,
    THRESHOLDS,
    TRAINING,
    Strike,
    fork_launcher,
    fork_main,
    fork_ranks,
)
from tests.support.training import outcome
from trainer.progress import progress_paths

LONG = (
    *("method=plop", "train.num_epochs=4", "train.momentum=0.9", "save_every=5", "logging.every=3"),
    # Ranks draw for themselves what they drop.
    *("logging.num_panels=0", "model.dropout=0.2"),
)


def command(folder: Path, log: str, *overrides: str) -> list[str]:
    return [
        "--config",
        str(write_tiny_config(folder)),
        "--log",
        log,
        *set_fields(*LONG, *overrides),
    ]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 20 iterations that nothing happened to; like all it is compared with, on one thread."""
    folder = tmp_path_factory.mktemp("long")
    process = call_main(*command(folder, "long"))
    assert process.returncode == 0, process.stderr
    return folder / "runs" / "long"


def test_signals_to_all_processes_and_a_kill_one_after_another_leave_a_run_as_it_would_have_been(
    tmp_path: Path, long_run: Path
) -> None:
    folder = tmp_path / "runs" / "struck"

    def strike(at: str, call: int, number: int, *overrides: str) -> str:
        whom = "process" if number == signal.SIGKILL else "group"
        blow = Strike(at, call, number, tmp_path / f"{at}{number}", whom)
        code, told = fork_main(command(tmp_path, "struck", *overrides), blow).end()
        assert code == (-number if number == signal.SIGKILL else 128 + number), told
        assert "Traceback" not in told
        return told

    # Only the signal saves: there are fewer iterations than `save_every` says.
    told = strike(TRAINING, 4, signal.SIGTERM, "data.num_workers=2", "save_every=1000")
    assert "SIGTERM: finishing the iteration, then saving" in told
    assert "SIGTERM: step 0 was saved after 4 iterations" in (folder / "log.txt").read_text()
    assert len(progress_paths(folder, 0)) == 1
    strike(TRAINING, 3, signal.SIGINT, "save_every=1000")
    assert "SIGINT: step 0 was saved after 7 iterations" in (folder / "log.txt").read_text()
    strike(TRAINING, 4, signal.SIGKILL, "data.num_workers=2")
    assert progress_paths(folder, 0)[0].name == "step_0.iteration_000000010.pth"
    told = strike(SAVING, 1, signal.SIGTERM)
    assert "SIGTERM: step 0 was saved as a whole" in (folder / "log.txt").read_text()
    assert progress_paths(folder, 0) == []
    told = strike(EVALUATION, 1, signal.SIGTERM, "data.num_workers=2")
    assert "SIGTERM: ended; the same command goes on from here" in told
    strike(THRESHOLDS, 1, signal.SIGTERM, "data.num_workers=2")
    code, told = fork_main(command(tmp_path, "struck")).end()
    assert code == 0, told
    assert (folder / "log.txt").read_text().count("goes on after") == 3
    assert outcome(folder) == outcome(long_run)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the long run on two ranks."""
    folder = tmp_path_factory.mktemp("two_ranks")
    for process in fork_ranks(find_free_port(), command(folder, "whole")):
        code, told = process.end()
        assert code == 0, told
    return folder / "runs" / "whole"


def test_a_signal_to_one_rank_saves_and_ends_both_and_they_continue_bit_for_bit(
    tmp_path: Path, two_ranks: Path
) -> None:
    arguments = command(tmp_path, "ranks", "data.num_workers=1", "save_every=1000")
    blow = Strike(TRAINING, 4, signal.SIGTERM, tmp_path / "once", rank=1)
    for expected in (143, 0):
        for process in fork_ranks(find_free_port(), arguments, blow):
            code, told = process.end()
            assert code == expected, told
    assert outcome(tmp_path / "runs" / "ranks") == outcome(two_ranks)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_other_with_its_name(
    tmp_path: Path, number: signal.Signals
) -> None:
    blow = Strike(TRAINING, 4, number, tmp_path / "once", rank=1)
    first, second = fork_ranks(find_free_port(), command(tmp_path, "lost", "distributed.timeout=4"), blow)
    try:
        code, told = first.end()
    finally:
        second.process.kill()
        second.process.join()
    assert code == 2
    assert "error: rank 1 of 2 has died or has not answered for 4 s (distributed.timeout)" in told
    assert "Traceback" not in told


def test_launchers_restart_a_dead_rank_pass_sigterm_on_and_meet_again_at_once_on_two_nodes(
    tmp_path: Path, two_ranks: Path
) -> None:
    arguments = command(tmp_path, "launched", "data.num_workers=1", "save_every=2")
    log = tmp_path / "runs" / "launched" / "log.txt"

    def launch(*strikes: Strike) -> str:
        code, told = fork_launcher(find_free_port(), arguments, *strikes).end()
        assert code == 1  # as torchrun
        assert "resource_sharer" not in told, "a data worker that served a rank"
        return told

    killed = Strike(TRAINING, 4, signal.SIGKILL, tmp_path / "killed", rank=1)
    told = launch(killed, Strike(EVALUATION, 1, signal.SIGTERM, tmp_path / "evaluating", "launcher"))
    assert "step 0: goes on after 2 iterations" in log.read_text()
    assert "SIGTERM: ended; the same command goes on from here" in told
    told = launch(Strike(THRESHOLDS, 1, signal.SIGTERM, tmp_path / "measuring", "launcher"))
    assert told.count("SIGTERM: ended; the same command goes on from here") == 2
    # The launcher passes it on in its own time; timeout and Slurm send it to all, data workers too, at once.
    for whom in ("launcher", "group"):
        launch(Strike(TRAINING, 1, signal.SIGTERM, tmp_path / whom, whom))
    assert log.read_text().count("SIGTERM: step 1 was saved after ") == 2
    # Each node counts its restarts for itself: were that the name of where ranks meet, they would wait out the timeout.
    arguments += ["--set", "distributed.timeout=1000"]
    killed = Strike(TRAINING, 3, signal.SIGKILL, tmp_path / "on_one_node", rank=1)
    port = find_free_port()
    nodes = [fork_launcher(port, arguments, killed, nodes=2) for _ in range(2)]
    ends = [node.end() for node in nodes]
    assert [code for code, _ in ends] == [0, 0], ends
    assert log.read_text().count("step 1: goes on after ") == 3
    assert outcome(log.parent) == outcome(two_ranks)
