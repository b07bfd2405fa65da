"""Nothing lost: a run that is killed, interrupted or damaged ends bit for bit as if it had not been."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainer.step
from datasets.incremental import TrainSampler
from datasets.tasks import Step
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
from trainer.checkpoint import checkpoint_path, digest, load_checkpoint, load_saved, save
from trainer.config import Config, load_config
from trainer.plan import prepare
from trainer.progress import MidStepSaves, load_progress, progress_paths, random_state, set_random_state
from trainer.run import run
from utils.distributed import Worker
from utils.files import SaveError, write_atomic
from utils.lock import RunLockedError, lock
from utils.logging import RunLog
from utils.signals import Interruption

WORKER = Worker(torch.device("cpu"))
SEGMENTER = ("model.name=segmenter", "model.backbone=test_vit", "model.patch_size=8", "model.num_heads=2")
# Everything with a state of its own: random numbers while training, momenta, a schedule, the best epoch so far.
STATEFUL = (
    "model.drop_path=0.5",
    "train.optimizer=adamw",
    "train.schedule=cosine",
    "checkpoint=best_validation",
)
LONG = ("train.num_epochs=30", "save_every=5", "logging.every=3", "train.momentum=0.9")


class Killed(BaseException):
    """A stand-in for SIGKILL within this process: nothing of ours catches it."""


def tiny(folder: Path, log: str, *overrides: str) -> Config:
    return load_config(write_tiny_config(folder), overrides, log=log)


def train(config: Config) -> None:
    run(prepare(config, WORKER), WORKER)


@contextmanager
def killed_before(iteration: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the block's run before an iteration, counted over all steps."""
    backward, calls = trainer.step.backward, iter(range(10**6))

    def counted(*args: Any) -> Any:
        if next(calls) == iteration:
            raise Killed
        return backward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.step, "backward", counted)
        with contextlib.suppress(Killed):
            yield
            pytest.fail(f"there was no iteration {iteration}")


def outcome(run_dir: Path, num_steps: int = 2) -> dict[str, Any]:
    """All that a run leaves but for times."""
    results = json.loads((run_dir / "results.json").read_text())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name in line.keys() - {"step", "iteration", "epoch", "images_per_second"}:
            curves.setdefault(name, []).append((line["iteration"], line[name]))
    return {
        "weights": [
            digest(load_checkpoint(checkpoint_path(run_dir, step))["model"]) for step in range(num_steps)
        ],
        "results": {**results, "steps": [{**step, "seconds": 0} for step in results["steps"]]},
        "curves": curves,
        "files": sorted(path.name for path in (run_dir / "checkpoints").iterdir()),
    }


def tensorboard_iterations(run_dir: Path, name: str) -> list[int]:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(name)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that nothing happened to: 4 epochs of 3 iterations and of 2."""
    config = tiny(tmp_path_factory.mktemp("whole"), "run", *SEGMENTER, *STATEFUL, "train.num_epochs=4")
    train(config)
    return outcome(config.run_dir)


@pytest.mark.parametrize("iteration", [0, 1, 4, 5, 11, 12, 13, 17, 19])
def test_a_run_killed_before_any_iteration_ends_bit_for_bit_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any], iteration: int
) -> None:
    config = tiny(tmp_path, "run", *SEGMENTER, *STATEFUL, "train.num_epochs=4", "save_every=2")
    with killed_before(iteration, monkeypatch):
        train(config)
    train(config)
    assert outcome(config.run_dir) == whole


def test_entries_that_span_a_kill_and_one_kill_after_another_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("train.num_epochs=4", "logging.every=5", "train.accumulate=2", "train.batch_size=8")
    plain, killed = (tiny(tmp_path, name, *fields, "save_every=1") for name in ("plain", "killed"))
    train(plain)
    for iteration in (1, 0, 2, 3):  # counted anew in each attempt: one makes no progress at all
        with killed_before(iteration, monkeypatch):
            train(killed)
    train(killed)
    ours, theirs = outcome(killed.run_dir), outcome(plain.run_dir)
    assert ours == theirs
    assert tensorboard_iterations(killed.run_dir, "loss") == tensorboard_iterations(plain.run_dir, "loss")


def test_a_resumed_step_says_so_and_leaves_no_mid_step_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path, "run", "save_every=1", "train.num_epochs=3")
    with killed_before(5, monkeypatch):
        train(config)
    names = [path.name for path in progress_paths(config.run_dir, 0)]
    assert names == ["step_0.iteration_000000005.pth", "step_0.iteration_000000004.pth"], "the last two stay"
    train(config)
    assert "step 0: goes on after 5 iterations" in capsys.readouterr().out
    assert progress_paths(config.run_dir, 0) == []


@pytest.mark.parametrize("num_skipped", [0, 1, 3, 4, 7, 8])
def test_a_resumed_sampler_gives_the_rest_of_the_whole_one(num_skipped: int) -> None:
    def batches(num_skipped: int) -> list[list[tuple[int, int]]]:
        sampler = TrainSampler(19, 8, 4, seed=3, step=1, rank=1, world_size=2, accumulate=2)
        sampler.num_skipped = num_skipped
        chosen = list(sampler)
        assert len(chosen) == len(sampler)
        return chosen

    assert batches(num_skipped) == batches(0)[2 * num_skipped :]


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    save(tmp_path / "state.pth", random_state(WORKER))
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist())  # noqa: NPY002
    torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
    set_random_state(load_saved(tmp_path / "state.pth"), WORKER)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()) == expected  # noqa: NPY002


# Through the command line


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


# Signals in themselves


def test_the_second_signal_ends_the_process_at_once_and_one_passed_on_twice_counts_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    clock = iter([0.0, 1.9, 2.1])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    interruption = Interruption()
    with interruption.listen(), interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert (interruption.received, exits) == (signal.SIGINT, [])
        signal.raise_signal(signal.SIGTERM)
    assert exits == [143]
    assert capfd.readouterr().err.count("finishing the iteration") == 1


def test_outside_an_iteration_a_signal_ends_the_process_with_its_exit_code() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption().listen(), pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


# Damaged files


WEIGHTS = torch.arange(100.0)


def make_saves(folder: Path, num_saves: int) -> list[Path]:
    for num_done in range(num_saves):
        save(
            folder / "checkpoints" / f"step_1.iteration_{num_done:09d}.pth",
            {"num_done": num_done, "model": WEIGHTS},
        )
    return progress_paths(folder, 1)


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    else:
        content[content.index(WEIGHTS.numpy().tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
def test_a_damaged_save_is_passed_over_with_a_warning(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, older = make_saves(tmp_path, 2)
    spoil(newest, how)
    log = RunLog(tmp_path, is_main=True)
    state = load_progress(tmp_path, 1, log)
    log.close()
    assert state is not None
    assert state["num_done"] == 0
    assert f"warning: {newest}: " in capsys.readouterr().out
    spoil(older, how)
    with pytest.raises(ValueError, match=r"all mid-step saves of step 1 are damaged .*delete them"):
        load_progress(tmp_path, 1, RunLog(tmp_path, is_main=False))


def test_a_run_whose_newest_save_is_damaged_still_ends_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    config = tiny(tmp_path, "run", *SEGMENTER, *STATEFUL, "train.num_epochs=4", "save_every=2")
    with killed_before(9, monkeypatch):
        train(config)
    spoil(progress_paths(config.run_dir, 0)[0], "truncated")
    train(config)
    assert outcome(config.run_dir) == whole


def test_a_flipped_bit_in_the_weights_of_a_finished_step_is_found_before_training(tmp_path: Path) -> None:
    config = tiny(tmp_path, "run")
    train(config)
    path = checkpoint_path(config.run_dir, 1)
    weight = load_checkpoint(path)["model"]["classifier.heads.0.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_1\.pth: damaged, its contents are not those that were saved"):
        prepare(config, WORKER)


def test_a_digest_depends_on_every_value_name_type_and_shape() -> None:
    base: dict[str, Any] = {
        "a": torch.zeros(2, 3),
        "b": [1, "x", None],
        "c": torch.ones(2, dtype=torch.bfloat16),
    }
    others = [
        {**base, "a": torch.zeros(3, 2)},
        {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**base, "a": torch.tensor([[0.0, 0, 0], [0, 0, 1e-30]])},
        {**base, "b": [1, "x"]},
        {**base, "b": [1.0, "x", None]},
        {"a": base["a"], "b": base["b"], "d": base["c"]},
    ]
    assert len({digest(value) for value in [base, *others]}) == len(others) + 1
    assert digest({**base, "a": torch.zeros(3, 2).T.contiguous()}) == digest(base)


# Disks and folders


def test_a_full_disk_is_told_with_path_and_bytes_and_the_older_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "step_0.pth"
    save(path, {"model": torch.zeros(3)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # no file may grow beyond it
    try:
        with pytest.raises(SaveError, match=r"step_0\.pth: cannot be written .* needs about 4.0 MB"):
            save(path, {"model": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_saved(path)["model"].tolist() == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["step_0.pth"], "nothing half written stays"


def test_a_disk_that_fills_up_while_a_step_trains_ends_the_run_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path, "run", "save_every=2", "train.num_epochs=3")
    saved: list[Any] = []
    write = torch.save

    def full(state: Any, file: Any) -> None:
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(state)
        write(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(
            SaveError, match=r"iteration_000000006\.pth: cannot be written \(No space left on device\)"
        ):
            train(config)
    assert [path.name[-5:] for path in progress_paths(config.run_dir, 0)] == ["4.pth", "2.pth"]
    train(config)


def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    config = tiny(tmp_path, "run")
    with pytest.raises(
        SaveError, match=r"runs/run/\.lock: cannot be written \((Not a directory|File exists)\)"
    ):
        train(config)


def test_results_that_cannot_be_written_leave_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        SaveError, match=r"results\.json: cannot be written \(No space left on device\).* 3 B,"
    ):
        write_atomic(path, "new")
    assert path.read_text() == "old"


# When saves are due


@pytest.mark.parametrize(("every", "due"), [(3, [3, 6]), ("0.5m", [2, 5])])
def test_saves_are_due_every_so_many_iterations_or_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int | str, due: list[int]
) -> None:
    seconds = iter([0.0, 10.0, 31.0, 31.0, 40.0, 60.0, 62.0, 62.0, 63.0])  # read again after each save
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    config = tiny(tmp_path, "run", f"save_every={every}")
    saves = MidStepSaves(config, Step(0, 0, 3), {}, WORKER, RunLog(tmp_path, is_main=False))
    for num_done in range(1, 7):
        saves.after_iteration(num_done, Interruption())
        found = [path.name for path in progress_paths(config.run_dir, 0)]
        assert found == [f"step_0.iteration_{i:09d}.pth" for i in reversed(due) if i <= num_done]


@pytest.mark.parametrize("every", ["0", "-3", "10h", "m", "true", "2.5"])
def test_a_length_that_is_none_is_refused(tmp_path: Path, every: str) -> None:
    with pytest.raises(ValueError, match=r"save_every"):
        tiny(tmp_path, "run", f"save_every={every}")


# Two runs of one name


HOLD = """
import sys
from pathlib import Path
from utils.files import SaveError, write_atomic
from utils.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=-1, stdout=-1, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    told = rf"run of this name is under way \(process {holder.pid} on "
    with pytest.raises(RunLockedError, match=told), lock(tmp_path):
        pass


def test_the_lock_of_a_killed_run_is_stale(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def test_the_lock_of_another_machine_is_respected_and_an_ended_one_is_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(
        json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01 00:00:00"})
    )
    with (
        pytest.raises(RunLockedError, match=r"process 1 on elsewhere since 2026.* delete .*\.lock"),
        lock(tmp_path),
    ):
        pass
    (tmp_path / ".lock").write_text("")
    with lock(tmp_path):
        pass
