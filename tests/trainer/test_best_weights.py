"""A step ends with the weights of the epoch that scored best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.training import SEGMENTER, tiny, train
from trainer.best_weights import BestWeights


class Counter(torch.nn.Module):
    """A network whose one weight says how often it was trained."""

    model = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def test_the_best_weights_are_those_of_the_first_highest_score() -> None:
    scores = iter([0.2, 0.6, None, 0.6, 0.1])
    best, model = BestWeights(lambda _: next(scores)), Counter()
    for epoch in range(5):
        with torch.no_grad():
            model.weight.fill_(epoch)
        best.consider(model, epoch)  # type: ignore[arg-type]
    assert (best.epoch, best.best, best.state["weight"].item()) == (1, 0.6, 1)


def test_without_any_score_the_first_epoch_is_kept() -> None:
    best, model = BestWeights(lambda _: None), Counter()
    best.consider(model, 0)  # type: ignore[arg-type]
    assert best.epoch == 0
    assert best.state["weight"].item() == 0


@pytest.mark.parametrize("kind", ["best_holdout", "best_validation"])
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
        now = entry["holdout"]["miou"] if kind == "best_holdout" else entry["miou_all"]
        assert now == pytest.approx(scores[best])


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
