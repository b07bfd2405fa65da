"""methods/star.py and methods/prototype_replay.py: what is replayed, what every step keeps, and MBS's option."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import shapes
from datasets.tasks import build_task
from methods import Output
from methods.base import Looks
from methods.mbs import MBS
from methods.prototype_replay import background_ratio, draw_replay, plan_replay
from methods.star import STAR
from models import DeepLabV3, SegmentationModel, SegOutput
from tests.support.outputs import LABELS, NUM_OLD, OLD, OUTPUT, make_method, terms_of
from tests.support.training import SEGMENTER, outcome, tiny, train
from tests.trainer.test_gradients import make_state
from tests.trainer.test_resume import Killed, killed_before
from trainer.checkpoint import checkpoint_path, load_checkpoint, new_model, restore_model
from trainer.config import Config
from trainer.step import prepare_for_training

NEW = {"setting": "overlap", "iterations_per_epoch": 50}


class Seen:
    """Looks at one batch, whose cells the old model takes for some classes, on one of two ranks that see the same."""

    device = torch.device("cpu")

    def __init__(self, cells: list[int], **about: Any) -> None:
        self.cells = torch.tensor(cells)
        self.setting, self.iterations_per_epoch = about["setting"], about["iterations_per_epoch"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, SegOutput]]:
        logits = F.one_hot(self.cells, NUM_OLD).float().T[None, :, None]
        old = SegOutput(logits, logits, torch.zeros(1, 6, 1, len(self.cells)), torch.zeros(3, 6), None)
        yield torch.zeros(1, 3, 1, 8), torch.zeros(1, 1, len(self.cells), dtype=torch.int64), old

    def sum(self, x: Tensor) -> Tensor:
        return 2 * x


def planned(setting: str) -> dict[str, Tensor]:
    """A state after looks at 600 cells of background and 1000 of class 1, of 1000, 5000 and 130 seen before."""
    state = {"counts": torch.tensor([1000.0, 5000.0, 130.0]).double()}
    looks = Seen([0] * 300 + [1] * 500, setting=setting, iterations_per_epoch=50)
    plan_replay(state, cast(Looks, looks), cast(SegmentationModel, None), NUM_OLD, 1)
    return state


def test_where_images_come_again_what_they_show_is_not_replayed_by_hand() -> None:
    state = planned("overlap")
    assert state["replayed"].bincount().tolist() == [0, 80, 2]
    assert state["background_ratio"].item() == pytest.approx(1.15)
    assert state["counts"].tolist() == pytest.approx([1290, 5000, 130])


@pytest.mark.parametrize("setting", ["disjoint", "partitioned"])
def test_where_they_do_not_what_they_show_counts_on_by_hand(setting: str) -> None:
    state = planned(setting)
    assert state["replayed"].bincount().tolist() == [0, 100, 2]
    assert state["background_ratio"].item() == pytest.approx(1000 / 600)
    assert state["counts"].tolist() == pytest.approx([1600, 6000, 130])


@pytest.mark.parametrize("setting", ["overlap", "disjoint", "partitioned"])
def test_a_class_that_no_step_has_shown_is_not_replayed_whatever_the_old_model_takes_for_it(
    setting: str,
) -> None:
    state = {"counts": torch.tensor([1000.0, 0.0, 130.0]).double()}
    looks = Seen([0] * 300 + [1] * 500, setting=setting, iterations_per_epoch=1)
    for _ in range(2):
        plan_replay(state, cast(Looks, looks), cast(SegmentationModel, None), NUM_OLD, 1)
        assert state["counts"][1] == 0
        assert 1 not in state["replayed"]


def test_dropout_rests_in_incremental_steps_only(tmp_path: Path) -> None:
    config = tiny(tmp_path, "star", "method=star", "model.dropout=0.1")
    model = new_model(config, [3, 2])
    for step, is_on in zip(build_task(config.task, shapes.CLASSES).steps, (True, False), strict=True):
        prepare_for_training(model, step, config.train)
        assert model.training
        assert {m.training for m in model.modules() if isinstance(m, nn.Dropout) and m.p} == {is_on}


def test_without_background_in_the_images_it_weighs_nothing_more() -> None:
    assert background_ratio(torch.tensor(5.0), torch.tensor(0), 0.5).item() == 0
    assert background_ratio(torch.tensor(1.0), torch.tensor(10), 0.5).item() == 0


def make_star(**options: Any) -> STAR:
    method = make_method(STAR, **options)
    torch.manual_seed(0)
    method.model = DeepLabV3([3, 2], DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=6))
    method.state = make_state(6)
    assert isinstance(method, STAR)
    return method


def test_classification_is_a_weighted_mean_over_pixels_replayed_features_and_background() -> None:
    method = make_star(positive_weight=4.0)
    features, classes = draw_replay(dict(method.state))
    terms = terms_of(method)
    z = OUTPUT.logits.detach().double()[:, NUM_OLD:]
    is_class = torch.stack([torch.eq(LABELS, c) for c in (3, 4)], dim=1)
    per_pixel = torch.where(is_class, 4 * F.softplus(-z), F.softplus(z)).sum(dim=1)
    assert method.model is not None
    fake = F.softplus(method.model.classify(features)[:, NUM_OLD:]).sum(dim=1).mean()
    middle = (slice(None), slice(1, None, 2), slice(1, None, 2))
    is_background = (LABELS[middle] == 0) & (OLD.logits.argmax(dim=1)[middle] == 0)
    extra = F.softplus(OUTPUT.grid_logits[:, NUM_OLD:].detach().double()).sum(dim=1)[is_background].mean()
    fake_weight, extra_weight = len(classes) / 32, 1.5 * float(is_background.sum()) / 32
    expected = per_pixel[LABELS != 255].mean() + fake_weight * fake + extra_weight * extra
    found = terms["cross_entropy"] + terms["replay"] + terms["background"]
    torch.testing.assert_close(found.double(), expected / (1 + fake_weight + extra_weight), rtol=1e-5, atol=0)


def test_terms_that_only_concern_what_a_batch_lacks_are_zero_and_keep_their_graph() -> None:
    terms = terms_of(make_star(), torch.full_like(LABELS, 255))
    for name in ("cross_entropy", "background", "feature_distillation", "discrimination"):
        assert terms[name].item() == 0
        (gradient,) = torch.autograd.grad(terms[name], OUTPUT.features, retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.abs().sum() == 0


def test_the_background_is_distilled_and_asked_to_vanish_where_a_new_class_is() -> None:
    found = terms_of(make_star(background_weight=2.0))["background_distillation"]
    expected = OLD.logits[:, 0].detach().sigmoid()
    expected[(LABELS == 3) | (LABELS == 4)] = 0
    loss = F.binary_cross_entropy_with_logits(OUTPUT.logits[:, 0], expected)
    torch.testing.assert_close(found, 2 * loss)


def test_an_iteration_draws_once_and_the_next_anew() -> None:
    method = make_star()
    draws = []
    for _ in range(2):
        targets = method.targets(LABELS, cast(Output, OLD))
        for _ in range(2):  # two micro-batches
            method.terms(cast(Output, OUTPUT), cast(Output, OLD), targets)
            assert method.drawn is not None
            draws.append(method.drawn[0])
    assert draws[0] is draws[1]
    assert draws[2] is draws[3]
    assert not torch.equal(draws[0], draws[2])


# Runs

EPOCHS = ("train.num_epochs=2", "save_every=1")


def state_of(config: Config, step: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_checkpoint(checkpoint_path(config.run_dir, step))["method_state"]
    return state


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny(tmp_path_factory.mktemp("star"), "plain", "method=star", *EPOCHS)
    train(config)
    return config


def test_a_step_leaves_the_statistics_of_its_classes_and_keeps_the_old_ones(plain: Config) -> None:
    base, last = state_of(plain, 0), state_of(plain, 1)
    for name in ("prototypes", "spreads", "length_means", "length_deviations"):
        assert (len(base[name]), len(last[name])) == (3, 5)
        assert torch.equal(last[name][:3], base[name])
    assert (last["counts"][1:] > 0).all()
    torch.testing.assert_close(last["prototypes"].norm(dim=1), torch.ones(5))
    assert last["replayed"].unique().tolist() == [1, 2]


def test_killed_within_steps_and_while_it_plans_its_replay_it_ends_bit_for_bit(
    tmp_path: Path, plain: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tiny(tmp_path, "killed", "method=star", *EPOCHS)

    def stop(*_: object) -> None:
        raise Killed

    with killed_before(2, monkeypatch):
        train(killed)
    with monkeypatch.context() as patch:
        patch.setattr("methods.prototype_replay.background_ratio", stop)
        with pytest.raises(Killed):
            train(killed)
    with killed_before(2, monkeypatch):
        train(killed)
    train(killed)
    assert outcome(killed.run_dir) == outcome(plain.run_dir)


def test_a_base_step_without_statistics_is_measured_later_with_the_same_result(
    tmp_path: Path, plain: Config
) -> None:
    base = tiny(tmp_path, "base", "method=ssul", "model.classifier=rows", *EPOCHS)
    train(base)
    ours, theirs = (load_checkpoint(checkpoint_path(c.run_dir, 0))["model"] for c in (plain, base))
    assert all(torch.equal(ours[name], x) for name, x in theirs.items()), "the networks are the same"
    later = tiny(tmp_path, "later", "method=star", *EPOCHS, f"init_from={checkpoint_path(base.run_dir, 0)}")
    train(later)
    assert state_of(later, 0) == {}
    for name, x in state_of(plain, 1).items():
        assert torch.equal(state_of(later, 1)[name], x), name
    ours, theirs = (load_checkpoint(checkpoint_path(c.run_dir, 1))["model"] for c in (plain, later))
    assert all(torch.equal(ours[name], x) for name, x in theirs.items())


def test_mbs_replays_the_base_step_that_it_measures_in_disjoint_steps_with_memory(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        "mbs",
        *("method=mbs", "method.replay_weight=0.5", "setting=disjoint", "memory.size=4"),
        "task=[[ring], [disc], [star]]",
    )
    train(config)
    assert [len(state_of(config, step).get("counts", ())) for step in range(3)] == [0, 3, 4]
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {step for line in lines for step in [line["step"]] if line.get("replay", 0) > 0} == {1, 2}
    model = restore_model(config, load_checkpoint(checkpoint_path(config.run_dir, 2)))
    assert model.num_classes == [2, 1, 1]


def test_the_replay_of_mbs_is_the_cross_entropy_of_drawn_features_over_the_cells_of_the_batch() -> None:
    method = make_method(MBS, replay_weight=3.0)
    assert isinstance(method, MBS)
    method.model, method.state = make_star().model, make_state(6)
    features, classes = draw_replay(dict(method.state))
    assert method.model is not None
    logits = method.model.classify(features)[:, :, 0, 0]
    expected = 3 * F.cross_entropy(logits, classes, reduction="sum") / 32
    torch.testing.assert_close(terms_of(method)["replay"], expected)
    assert method.begins_with == "counts"
    assert make_method(MBS).begins_with is None


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            ("method=star",),
            r"method\.name: star scores features that no image gave, .* use model\.name deeplabv3",
        ),
        (
            ("method=mbs", "method.replay_weight=1"),
            r"method\.replay_weight: .* segmenter cannot: it decodes classes per image",
        ),
    ],
)
def test_a_model_that_decodes_classes_per_image_is_refused(
    tmp_path: Path, method: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        tiny(tmp_path, "refused", *SEGMENTER, *method)
