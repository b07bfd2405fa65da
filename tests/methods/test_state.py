"""What a method carries: through a step that is killed, from step to step, from run to run, and on every rank."""

from pathlib import Path
from typing import Any

import pytest
import torch

from methods import METHODS, Method
from methods.plop import PLOP
from models import SegmentationModel
from tests.support.training import WORKER, outcome, tiny, train
from tests.trainer.test_gradients import (
    assert_equal_iterations,
    joined,
    make_config,
    one_iteration,
    run_two_ranks,
)
from tests.trainer.test_resume import killed_before
from trainer.checkpoint import checkpoint_path, load_checkpoint
from trainer.config import Config

LITTLE = ("train.clip_grad_norm=0.001",)
ON_RANKS = {
    "dkd": ("method=dkd",),
    "star": ("method=star",),
    "barm": ("method=barm", "method.threshold=0.1"),
    "mbs_ucb": ("method=mbs_ucb", "method.entropy_threshold=1"),
    "plop_ucb": ("method=plop_ucb",),
    "ewf": ("method=ewf",),
    "nest": ("method=nest",),
    "rcil": ("method=rcil",),
    "dft": ("method=dft",),
    "mbs with replay": ("method=mbs", "method.threshold=0.5", "method.replay_weight=0.5"),
}
"""Methods that have modules or networks of their own, terms that all ranks share, or a base of their own."""
PARTS_OF = {
    "dkd": {"parts.auxiliary.weight", "parts.auxiliary.bias"},
    "dft": {"parts.future.weight", "parts.future.bias"},
}


class Counting(Method):
    """Counts in its state the steps that have ended."""

    def end_step(self, model: SegmentationModel, old_model: SegmentationModel | None) -> None:
        self.state["ended"] = self.state.get("ended", torch.zeros(())) + 1


Counting.base_step = Counting


def state_of(config: Config, step: int) -> Any:
    return load_checkpoint(checkpoint_path(config.run_dir, step))["method_state"]


def test_plop_killed_in_a_step_and_resumed_ends_bit_for_bit_and_measures_its_thresholds_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("method=plop", "train.num_epochs=2", "save_every=1")  # 6 iterations, then 4
    plain, killed = (tiny(tmp_path, name, *fields) for name in ("plain", "killed"))
    train(plain)
    measured = []
    begin_step = PLOP.begin_step

    def counted(method: PLOP, *arguments: Any) -> None:
        measured.append(method.num_old)
        begin_step(method, *arguments)

    monkeypatch.setattr(PLOP, "begin_step", counted)
    with killed_before(8, monkeypatch):
        train(killed)
    train(killed)
    assert measured == [3]
    assert outcome(killed.run_dir) == outcome(plain.run_dir)
    assert state_of(killed, 1)["thresholds"].shape == (3,)


@pytest.mark.parametrize("iteration", [2, 4])
def test_dkd_killed_in_either_step_and_resumed_ends_with_the_same_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iteration: int
) -> None:
    plain, killed = (tiny(tmp_path, name, "method=dkd", "save_every=1") for name in ("plain", "killed"))
    train(plain)
    with killed_before(iteration, monkeypatch):
        train(killed)
    train(killed)
    assert outcome(killed.run_dir) == outcome(plain.run_dir)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left an iteration of each of ON_RANKS."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(folder, "deeplabv3", LITTLE, tuple(ON_RANKS.values()))
    return folder


@pytest.mark.parametrize("name", list(ON_RANKS))
def test_two_ranks_give_the_gradient_of_one_process(two_ranks: Path, name: str) -> None:
    config = make_config(two_ranks, "deeplabv3", *LITTLE, method=ON_RANKS[name])
    whole = one_iteration(config, WORKER, accumulate=1)
    for accumulate in (1, 2):
        found = joined(two_ranks, accumulate, list(ON_RANKS).index(name))
        assert PARTS_OF.get(name, set()) == {weight for weight in found[2] if weight.startswith("parts.")}
        assert_equal_iterations(found, whole)


def test_state_goes_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "finetune", Counting)
    config = tiny(tmp_path, "run", "method=finetune", "task=[[ring], [disc], [star]]")
    train(config)
    assert [state_of(config, step) for step in range(3)] == [
        {"ended": torch.tensor(n)} for n in (1.0, 2.0, 3.0)
    ]


def test_state_of_a_base_step_goes_to_runs_of_the_class_that_trained_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "finetune", Counting)
    base = tiny(tmp_path, "base", "method=finetune")
    train(base)
    init_from = f"init_from={checkpoint_path(base.run_dir, 0)}"
    for method, expected in (("finetune", [1, 2]), ("lwf", [])):
        config = tiny(tmp_path, method, f"method={method}", init_from)
        train(config)
        found = [state_of(config, step) for step in (0, 1)]
        assert [float(state["ended"]) for state in found if state] == expected
