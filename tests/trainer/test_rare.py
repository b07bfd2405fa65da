"""trainer/rare.py: terms for rare classes beside any method's, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods import METHODS, means
from methods.base import Method, Output
from models import SegOutput
from tests.support.cli import write_tiny_config
from tests.support.training import WORKER, outcome, tiny, train
from trainer.config import load_config
from trainer.plan import prepare
from trainer.rare import RareConfig, RareTerms, weight_table


def output_of(logits: Tensor) -> Output:
    return cast(Output, SegOutput(logits, logits, logits, torch.zeros(logits.shape[1], 1), None))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, generator=generator).requires_grad_()
    labels = torch.randint(0, 4, (2, 6, 5), generator=generator)
    labels[0, 0] = 255
    return logits, labels


def loss(method: Method, rare: RareTerms, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    old = cast(Output, None)
    targets = rare.ask(method.targets(labels, old))
    terms = {**method.terms(output_of(logits), old, targets), **rare.terms(output_of(logits), targets)}
    return means(terms, targets.counts)


def test_with_the_term_of_the_weights_the_cross_entropy_is_the_weighted_one(
    batch: tuple[Tensor, Tensor],
) -> None:
    logits, labels = batch
    method = METHODS["finetune"](METHODS["finetune"].Options(), 0, 4)
    weights = {1: 3.0, 2: 0.5, 3: 20.0}
    rare = RareTerms(RareConfig(class_weights={"a": 3.0}), "softmax", 1, 4, weight_table(weights))
    terms = loss(method, rare, logits, labels)
    assert terms.keys() == {"cross_entropy", "class_weights"}
    weight = torch.tensor([1, 3.0, 0.5, 20])
    expected = F.cross_entropy(logits, labels, weight, ignore_index=255, reduction="sum")
    torch.testing.assert_close(torch.stack([*terms.values()]).sum(), expected / (labels != 255).sum())


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_in_incremental_steps_only_the_new_classes_have_the_terms(
    batch: tuple[Tensor, Tensor], scores: str
) -> None:
    logits, labels = batch
    config = RareConfig(class_weights={"d": 5.0}, dice_weight=1.0, focal_weight=1.0)
    rare = RareTerms(config, scores, 3, 4, weight_table({3: 5.0}))
    method = METHODS["finetune"](METHODS["finetune"].Options(), 3, 1)
    only_old = labels.where(labels < 3, 0)
    targets = rare.ask(method.make_targets(only_old))
    terms = means(rare.terms(output_of(logits), targets), targets.counts)
    assert terms.keys() == {"class_weights", "dice", "focal"}
    assert terms["class_weights"] == terms["dice"] == 0
    targets = rare.ask(method.make_targets(labels))
    terms = means(rare.terms(output_of(logits), targets), targets.counts)
    total = torch.stack([*terms.values()]).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    shows_new = (labels == 3)[:, None].expand_as(gradient)
    assert (gradient[:, 3:][shows_new[:, 3:]] < 0).all()
    if scores == "sigmoid":
        assert gradient[:, :3].abs().sum() == 0


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_the_terms_do_not_depend_on_how_a_batch_is_cut(batch: tuple[Tensor, Tensor], scores: str) -> None:
    logits, labels = batch
    labels[1] = labels[1].where(labels[1] == 1, 0)  # the halves show different classes
    config = RareConfig(class_weights="balanced", dice_weight=0.5, focal_weight=2)
    rare = RareTerms(config, scores, 1, 4, weight_table({1: 2.0, 3: 7.0}))
    method = METHODS["finetune"](METHODS["finetune"].Options(), 0, 4)
    targets = [rare.ask(method.make_targets(part)) for part in (labels, labels[:1], labels[1:])]
    outputs = [output_of(part) for part in (logits, logits[:1], logits[1:])]
    counts = {name: sum(t.counts[name] for t in targets[1:]) for name in targets[0].counts}
    assert {**counts, "batches": 1} == targets[0].counts
    whole, first, second = (
        means(rare.terms(output, target), cast(dict[str, Tensor], counts))
        for output, target in zip(outputs, targets, strict=True)
    )
    for name, value in whole.items():
        torch.testing.assert_close(first[name] + second[name], value)


def test_every_method_takes_them_and_fields_say_which_classes(tmp_path: Path) -> None:
    fields = (
        "rare.class_weights=balanced",
        "rare.dice_weight=0.5",
        "rare.focal_weight=2",
        "rare.oversample=0.9",
    )
    config = tiny(tmp_path, "plop", *fields, "method=plop", "train.accumulate=2")
    plan = prepare(config, WORKER)
    assert plan.repeats[0]
    assert any(line.startswith("rare.oversample: an epoch of step 0 shows") for line in plan.remarks)
    train(config)
    assert outcome(config.run_dir)["curves"].keys() >= {"local_pod", "class_weights", "dice", "focal"}
    log = (config.run_dir / "log.txt").read_text()
    assert "step 0: class weights: ring " in log
    assert "step 1: class weights: star " in log


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            ["rare.class_weights={comet: 2}"],
            r"rare\.class_weights: found comet; the task has the classes ring, disc",
        ),
        (["rare.class_weights={background: 2}"], r"found background; .* background keeps the weight 1"),
        (["rare.class_weights={ring: 0}"], r"rare\.class_weights.*greater than 0"),
        (["rare.class_weights=equal"], r"rare\.class_weights"),
        (
            ["rare.dice_weight=1", "method=ridge", "model.pretrained=x.pth"],
            r"rare: method ridge solves for its classes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, fields: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        prepare(load_config(write_tiny_config(tmp_path), fields), WORKER)
