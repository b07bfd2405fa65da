"""A step ends with the weights of the epoch that scored best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from methods import Method
from models import SegmentationModel
from tests.support.outputs import make_method
from tests.support.training import SEGMENTER, tiny, train
from trainer.best_weights import BestWeights
from trainer.iteration import Learner
from trainer.network import Network


class Mean(nn.Module):
    """A network of one number."""

    pixel_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(1))


def make_learner() -> Learner:
    """A network and a method whose state change in place, as training changes them."""
    method = make_method(Method)
    method.state["epoch"] = torch.zeros(1)
    return Learner(method, Network(cast(SegmentationModel, Mean()), method.modules), None)


def test_the_best_weights_and_the_state_with_them_are_those_of_the_first_highest_score() -> None:
    scores = iter([0.2, 0.6, None, 0.6, 0.1])
    best, learner = BestWeights(lambda _: next(scores)), make_learner()
    for epoch in range(5):
        learner.model.pixel_mean.fill_(epoch)
        learner.method.state["epoch"].fill_(epoch)
        best.consider(learner, epoch)
    assert (best.epoch, best.best) == (1, 0.6)
    resumed = BestWeights(lambda _: None)
    resumed.load_state_dict(best.state_dict())
    resumed.restore(learner)
    assert (learner.model.pixel_mean.item(), learner.method.state["epoch"].item()) == (1, 1)


def test_without_any_score_the_last_epoch_is_kept() -> None:
    best, learner = BestWeights(lambda _: None), make_learner()
    for epoch in range(2):
        learner.model.pixel_mean.fill_(epoch)
        best.consider(learner, epoch)
    best.restore(learner)
    assert (best.epoch, best.best, learner.model.pixel_mean.item()) == (1, None, 1)


KINDS = {
    "best_holdout": lambda entry: entry["holdout"]["miou"],
    "best_validation": lambda entry: entry["miou_all"],
    "best_validation_new": lambda entry: entry["miou_new"],
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_step_ends_with_the_epoch_that_scored_best(tmp_path: Path, kind: str) -> None:
    config = tiny(
        tmp_path, kind, f"checkpoint={kind}", "val_fraction=0.25", "train.num_epochs=4", "train.lr_base=0.05"
    )
    results = train(config)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    for entry in results["steps"]:
        scores = [x["score"] for x in lines if x["step"] == entry["step"] and "score" in x]
        assert len(scores) == 4
        best = max(range(4), key=lambda epoch: scores[epoch])
        assert entry["checkpoint"] == {"by": kind, "epoch": best, "score": scores[best]}
        # The weights that were kept give that score again.
        assert KINDS[kind](entry) == pytest.approx(scores[best])


def test_looking_at_the_epochs_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    drop_path = "model.drop_path=0.5"  # draws from the global random numbers
    plain = tiny(tmp_path, "plain", *SEGMENTER, drop_path, "train.num_epochs=3")
    looked = tiny(
        tmp_path, "looked", *SEGMENTER, drop_path, "train.num_epochs=3", "checkpoint=best_validation"
    )
    train(plain)
    train(looked)
    curves = [
        [
            x["loss"]
            for x in map(json.loads, (c.run_dir / "metrics.jsonl").open())
            if "loss" in x and x["step"] == 0
        ]
        for c in (plain, looked)
    ]
    assert len(curves[0]) == 9
    assert curves[0] == curves[1]


def test_best_holdout_without_held_out_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint: best_holdout needs .* val_fraction"):
        tiny(tmp_path, "x", "checkpoint=best_holdout")


def test_a_step_whose_epochs_have_no_score_ends_with_the_last_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unscored: dict[str, object] = {"classes": [], "miou": None, "num_images": 3}
    monkeypatch.setattr("trainer.best_weights.score_on_holdout", lambda *_: unscored)
    fields = ("val_fraction=0.25", "checkpoint=best_holdout", "method=finetune", "train.num_epochs=2")
    config = tiny(tmp_path, "unscored", *fields, "logging.num_panels=0")
    steps = train(config)["steps"]
    assert [step["checkpoint"] for step in steps] == [{"by": "best_holdout", "epoch": 1, "score": None}] * 2
    assert (config.run_dir / "log.txt").read_text().count("the last epoch was taken") == 2
