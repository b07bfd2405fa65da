"""trainer/fusion.py: a step ends between its old and its new weights (EWF), for any method and once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from datasets.tasks import build_task
from tests.support.golden import load_method_golden
from tests.support.training import SEGMENTER, assert_equal_states, outcome, tiny, train, weights
from tests.trainer.test_resume import killed_before
from trainer.checkpoint import checkpoint_path, load_checkpoint, new_model
from trainer.fusion import fuse_weights, share_of_new
from trainer.step import prepare_for_training

FUSED = ("train.fuse_old_weights=true", "train.weight_decay=0.1", "train.lr_incremental=0.05")
SHARE = math.sqrt(2 / 5)
"""Of the tiny task's second step, which adds two classes to three."""


@pytest.mark.parametrize(
    ("num_old", "num_new", "share", "fused"),
    [(16, 1, 0.242536, 1.485071), (16, 5, 0.487950, 1.975900), (4, 1, 0.447214, 1.894427)],
)
def test_the_new_weights_share_is_the_root_of_the_new_classes_share_by_hand(
    num_old: int, num_new: int, share: float, fused: float
) -> None:
    assert share_of_new(num_old, num_new) == pytest.approx(share, abs=1e-6)
    (value,) = fuse_weights(
        {"x": torch.ones(1)}, {"x": torch.full((1,), 3.0)}, share_of_new(num_old, num_new)
    )["x"]
    assert value.item() == pytest.approx(fused, abs=1e-6)


def test_what_has_not_moved_is_new_or_counts_stays_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(1000, generator=generator)
    old = {"still": still, "batches": torch.tensor(10)}
    new = {"still": still.clone(), "batches": torch.tensor(25), "head": still + 1}
    fused = fuse_weights(old, new, 0.3)
    assert torch.equal(fused["still"], still)
    assert fused["batches"].item() == 25
    assert torch.equal(fused["head"], still + 1)


def test_half_precision_is_fused_in_float32() -> None:
    old, new = (torch.tensor([x], dtype=torch.float16) for x in (6e4, -6e4))
    fused = fuse_weights({"x": old}, {"x": new}, 0.25)["x"]
    assert fused.dtype == torch.float16
    assert fused.item() == pytest.approx(3e4, rel=1e-3)


def test_a_weight_that_the_step_lost_is_an_error() -> None:
    with pytest.raises(KeyError, match="gone"):
        fuse_weights({"gone": torch.ones(1)}, {}, 0.5)


@pytest.mark.parametrize(("case", "num_new"), [("a", 1), ("b", 5)])
def test_the_released_fusion_is_reproduced(case: str, num_new: int) -> None:
    golden = load_method_golden("EWF")

    def states(kind: str) -> dict[str, torch.Tensor]:
        prefix = f"{case}.{kind}."
        return {name.removeprefix(prefix): x for name, x in golden.items() if name.startswith(prefix)}

    share = share_of_new(16, num_new)
    assert share == pytest.approx(golden[f"{case}.merge_weight"].item(), abs=1e-15)
    fused = fuse_weights(states("old"), states("new"), share)
    expected = states("merged")
    assert fused.keys() == expected.keys()
    assert max(float((fused[name] - x).abs().max()) for name, x in expected.items()) < 3e-7


@pytest.mark.parametrize("more", [("method=dkd",), SEGMENTER])
def test_a_run_ends_its_step_between_the_checkpoint_before_and_what_it_would_end_with_otherwise(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    plain = tiny(tmp_path, "plain", *FUSED[1:], *more)
    fused = tiny(tmp_path, "fused", *FUSED, *more)
    for config in (plain, fused):
        train(config)
    before, trained, ended = (
        load_checkpoint(checkpoint_path(config.run_dir, step))
        for config, step in ((plain, 0), (plain, 1), (fused, 1))
    )
    assert_equal_states(weights(fused, 0), before["model"])
    for kind in ("model", "parts"):
        assert_equal_states(ended[kind], fuse_weights(before[kind], trained[kind], SHARE))
    assert any(not torch.equal(trained["model"][name], x) for name, x in before["model"].items())


@pytest.mark.parametrize("more", [(), SEGMENTER])
def test_old_classes_that_are_frozen_leave_the_newest_and_all_else_to_train(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    config = tiny(tmp_path, "frozen", *more, "train.freeze_old_classes=true", "train.freeze_bn=false")
    model = new_model(config, [3])
    model.grow(2)
    prepare_for_training(model, build_task([["a", "b"], ["c", "d"]], ("0", *"abcd")).steps[1], config.train)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    rows = [name for name, _ in model.named_parameters() if name.startswith("classifier.")]
    assert frozen == {name for name in rows if ".0" in name}
    assert len(frozen) == len(rows) // 2


def test_the_preset_fuses_mib_once_also_when_killed_and_its_frozen_background_keeps_a_part_of_its_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, killed = (
        tiny(tmp_path, name, "method=ewf", "save_every=1", "train.weight_decay=0.1")
        for name in ("plain", "killed")
    )
    assert plain.train.fuse_old_weights
    assert plain.train.freeze_old_classes
    train(plain)
    with killed_before(4, monkeypatch):
        train(killed)
    train(killed)
    assert outcome(killed.run_dir) == outcome(plain.run_dir)
    before, after = weights(plain, 0), weights(plain, 1)
    bias = "classifier.heads.0.bias"
    torch.testing.assert_close(after[bias][0], before[bias][0] - SHARE * math.log(3))
    assert torch.equal(after[bias][1:], before[bias][1:])
    assert torch.equal(after["classifier.heads.0.weight"], before["classifier.heads.0.weight"])


def test_epochs_are_scored_by_the_weights_with_which_the_step_would_end(tmp_path: Path) -> None:
    more = ("checkpoint=best_validation", "train.num_epochs=3", "train.lr_base=0.05")
    config = tiny(tmp_path, "best", *FUSED, *more)
    entry = train(config)["steps"][1]
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines if line["step"] == 1 and "score" in line]
    assert entry["checkpoint"]["score"] == max(scores)
    assert entry["miou_all"] == pytest.approx(max(scores))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["method=ssul", FUSED[0]],
            r"train\.fuse_old_weights: train\.freeze_extractor keeps all old weights",
        ),
        (
            ["method=ridge", "model.pretrained=true", "train.freeze_old_classes=true"],
            r"train\.freeze_old_classes: method\.name ridge trains no weights",
        ),
        (
            ["method=dft", "train.freeze_extractor=false", FUSED[0]],
            r"train\.fuse_old_weights: .* moves its rows to come into the network",
        ),
        (["method=finetune", "task=domains_11-5", FUSED[0]], r"train\.fuse_old_weights: .* brings domains"),
    ],
)
def test_what_cannot_be_fused_is_refused(tmp_path: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny(tmp_path, "refused", *overrides)
