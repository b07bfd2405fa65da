"""methods/barm.py: its terms, its growing network, runs, and what it is refused with."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from methods import Output
from methods.barm import BARM
from models import DeepLabV3
from tests.support.outputs import make_method
from tests.support.training import SEGMENTER, outcome, tiny, train, weights
from tests.trainer.test_gradients import STEP, make_batch, make_config, make_learner
from tests.trainer.test_resume import killed_before
from trainer.checkpoint import checkpoint_path
from trainer.config import Config
from trainer.step import prepare_for_training


def make_model(residuals: Any, num_classes: list[int]) -> DeepLabV3:
    torch.manual_seed(0)
    return DeepLabV3(
        num_classes,
        DeepLabV3.Options(
            backbone="test_resnet",
            pretrained=False,
            channels=6,
            background_residuals=residuals,
        ),
    )


def test_a_base_step_has_the_same_network_with_and_without_residuals() -> None:
    plain, ours = (make_model(kind, [3]).state_dict() for kind in ("none", "ears"))
    assert plain.keys() == ours.keys()
    assert all(torch.equal(ours[name], x) for name, x in plain.items())


@pytest.mark.parametrize("kind", ["ears", "rows"])
def test_a_step_adds_a_residual_and_changes_old_scores_by_it_alone(kind: str) -> None:
    model, images = make_model(kind, [3, 1]).eval(), make_batch()[0]
    before = model(images)
    model.grow(2)
    after = model.eval()(images)
    assert [output.shape[1] for output in after.head_outputs] == [3, 2, 3]
    for old, new in zip(before.head_outputs, after.head_outputs, strict=False):
        assert torch.equal(new, old)
    assert torch.equal(after.grid_logits[:, 1:4], before.grid_logits[:, 1:])
    lowered = before.grid_logits[:, :1] + after.head_outputs[2][:, :1].clamp(max=0)
    torch.testing.assert_close(after.grid_logits[:, :1], lowered)
    assert len(after.ears) == (3 if kind == "ears" else 1)
    assert torch.equal(after.ears[-1], after.ears[0]), "an ear starts as the shared convolution"
    rebuilt = make_model(kind, [3, 1, 2])
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt.eval()(images).grid_logits, after.grid_logits)


def test_what_old_steps_added_is_frozen_with_the_extractor_and_old_classes(tmp_path: Path) -> None:
    config = make_config(tmp_path, "deeplabv3", "train.freeze_extractor=true", method=("method=barm",))
    model = make_model("ears", [3, 1])
    model.grow(1)
    prepare_for_training(model, STEP, config.train)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[0] for name in trains} == {
        "classifier.heads.2",
        "residual_background.rows.1",
        "residual_background.ears.1.0",
    }, "the ear's BatchNorm, a copy, is frozen as all others are"


def test_a_batch_without_background_or_new_classes_has_terms_of_zero(tmp_path: Path) -> None:
    learner = make_learner(make_config(tmp_path, "deeplabv3", method=("method=barm",)))
    images, labels = make_batch()
    assert learner.old_model is not None
    old, output = learner.old_model(images), learner.model(images)
    for label, name in ((0, "adaptation"), (3, "triplet")):
        targets = learner.method.targets(torch.full_like(labels, label), cast(Output, old))
        term = learner.method.terms(cast(Output, output), cast(Output, old), targets)[name]
        assert term.total.item() == 0
        gradients = torch.autograd.grad(term.total, output.head_outputs, retain_graph=True, allow_unused=True)
        assert all(g is None or g.abs().sum() == 0 for g in gradients)


# Runs

FIELDS = (
    "method=barm",
    "save_every=1",
    "setting=disjoint",
    "memory.size=2",
    "task=[[ring], [disc], [star]]",
    "train.num_epochs=2",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny(tmp_path_factory.mktemp("barm"), "plain", *FIELDS)
    train(config)
    return config


def test_the_background_of_the_base_step_learns_by_distillation_alone_and_steps_add_their_ears(
    plain: Config,
) -> None:
    states = [weights(plain, step) for step in range(3)]
    added = [
        {name.rsplit(".", 1)[0] for name in after.keys() - before.keys()}
        for before, after in itertools.pairwise(states)
    ]
    assert added == [
        {f"classifier.heads.{i + 1}"}
        | {f"residual_background.{part}" for part in (f"rows.{i}", f"ears.{i}.0", f"ears.{i}.1")}
        for i in range(2)
    ]


def test_killed_in_its_last_step_it_ends_bit_for_bit(
    tmp_path: Path, plain: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tiny(tmp_path, "killed", *FIELDS)
    with killed_before(5, monkeypatch):
        train(killed)
    train(killed)
    assert outcome(killed.run_dir, 3) == outcome(plain.run_dir, 3)


def test_a_base_step_of_ssul_serves_the_light_form(tmp_path: Path) -> None:
    base = tiny(tmp_path, "base", "method=ssul", "model.classifier=rows")
    train(base)
    config = tiny(
        tmp_path,
        "light",
        *("method=barm", "model.background_residuals=rows"),
        f"init_from={checkpoint_path(base.run_dir, 0)}",
    )
    train(config)
    added = weights(config, 1).keys() - weights(base, 0).keys()
    assert sum(name.startswith("residual_background.") for name in added) == 2


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["method=barm", *SEGMENTER],
            r"model\.background_residuals: unknown key; it is a field of model deeplabv3",
        ),
        (
            ["method=barm", "model.background_residuals=none"],
            r"method\.name: barm lowers the background by residuals, .* set model\.background_residuals to ears",
        ),
        (
            ["method=mbs", "model.background_residuals=rows"],
            r"model\.background_residuals: found rows, which method\.name mbs does not train",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny(tmp_path, "refused", *overrides)


def test_it_needs_the_old_model_and_has_the_base_step_of_sigmoids() -> None:
    assert make_method(BARM).needs_old_model
    assert BARM.base_step.scores == "sigmoid"
