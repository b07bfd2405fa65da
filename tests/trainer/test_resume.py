"""A run that is killed or damaged ends bit for bit as if it had not been."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainer.step
from tests.support.training import SEGMENTER, WORKER, outcome, tiny, train
from trainer.checkpoint import checkpoint_path, digest, load_checkpoint, save
from trainer.plan import prepare
from trainer.progress import load_progress, progress_paths
from trainer.sampling import TrainSampler
from utils.logging import RunLog

# Everything with a state of its own: random numbers while training, momenta, a schedule, the best epoch so far.
STATEFUL = (
    "model.drop_path=0.5",
    "train.optimizer=adamw",
    "train.schedule=cosine",
    "checkpoint=best_validation",
)


class Killed(BaseException):
    """A stand-in for SIGKILL within this process: nothing of ours catches it."""


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


def test_a_run_in_bf16_that_is_killed_ends_bit_for_bit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("train.amp=bf16", "train.channels_last=true", "train.num_epochs=2", "save_every=1")
    plain, killed = (tiny(tmp_path, name, *fields) for name in ("plain", "killed"))
    train(plain)
    for iteration in (4, 3):  # within step 0, then within step 1
        with killed_before(iteration, monkeypatch):
            train(killed)
    train(killed)
    assert outcome(killed.run_dir) == outcome(plain.run_dir)


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
