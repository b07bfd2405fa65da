"""methods/ucb.py: the weights on three methods, in runs and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from losses.uncertainty_balance import balanced_weights, class_weights, count_classes, uncertainty_weights
from methods import METHODS, Method, Output
from methods.ucb import UCB
from tests.methods.test_rivals import with_stages
from tests.support.outputs import (
    LABELS,
    NUM_NEW,
    NUM_OLD,
    OLD,
    OUTPUT,
    make_method,
    slow_cross_entropy,
    terms_of,
)
from tests.support.training import SEGMENTER, outcome, tiny, train
from tests.trainer.test_resume import killed_before
from trainer.checkpoint import checkpoint_path, load_checkpoint

SEEN = torch.tensor([200.0, 40.0, 0.0, 30.0, 0.0]).double()


def make_ucb(name: str, **options: Any) -> Method:
    method = make_method(METHODS[name], **{"entropy_threshold": 0.9, **options})
    method.state = {"class_pixels": SEEN, "thresholds": torch.full((NUM_OLD,), 2.0)}
    return method


@pytest.mark.parametrize(
    ("name", "kind"), [("mbs_ucb", "softmax"), ("plop_ucb", "softmax"), ("ssul_ucb", "sigmoids")]
)
def test_the_cross_entropy_is_a_mean_by_the_weights_of_labelled_pixels(name: str, kind: str) -> None:
    output, old = with_stages(OUTPUT, 1), with_stages(OLD, 2)
    method = make_ucb(name)
    labels = method.targets(LABELS, cast(Output, old)).pseudo_labels
    of_classes = class_weights(SEEN + count_classes(labels, NUM_OLD + NUM_NEW), NUM_OLD)
    sureness = uncertainty_weights(labels, OLD.logits, 0.9)
    weights = balanced_weights(sureness, labels, of_classes).double().masked_fill(labels == 255, 0)
    assert 0 < (weights == 0).double().mean() < 1
    expected = (weights * slow_cross_entropy(kind, labels)).sum() / weights.sum()
    terms = terms_of(method, output=output, old=old)
    torch.testing.assert_close(terms["cross_entropy"].double(), expected, rtol=1e-5, atol=0)
    plain = make_method(METHODS[name.removesuffix("_ucb")])
    plain.state = dict(method.state)
    assert set(terms) == set(terms_of(plain, output=output, old=old))


def test_on_plop_every_background_pixel_gets_the_old_models_class() -> None:
    labels = make_ucb("plop_ucb").targets(LABELS, cast(Output, OLD)).pseudo_labels
    assert torch.equal(labels, torch.where(LABELS == 0, OLD.logits.argmax(dim=1), LABELS))


def test_where_nothing_is_sure_the_term_is_zero_and_keeps_its_graph() -> None:
    old = OLD._replace(pixel_logits=torch.zeros_like(OLD.logits))
    term = terms_of(make_ucb("ssul_ucb"), torch.zeros_like(LABELS), old=old)["cross_entropy"]
    assert term.item() == 0
    assert torch.autograd.grad(term, OUTPUT.logits)[0].abs().sum() == 0


def test_an_iteration_counts_its_pixels_once_however_many_micro_batches_it_has() -> None:
    method = make_ucb("mbs_ucb")
    targets = [method.targets(LABELS, cast(Output, OLD)) for _ in range(2)]
    for asked in targets:
        method.terms(cast(Output, OUTPUT), cast(Output, OLD), asked)
    expected = SEEN + count_classes(targets[0].pseudo_labels, NUM_OLD + NUM_NEW)
    assert torch.equal(method.state["class_pixels"], expected)


def test_pseudo_labels_of_lower_weight_weigh_by_both_factors() -> None:
    halved, whole = make_ucb("mbs_ucb", pseudo_label_weight=0.0), make_ucb("mbs_ucb")
    labels = whole.targets(LABELS, cast(Output, OLD)).pseudo_labels
    is_own = (labels == LABELS) & (labels != 255)
    loss = F.cross_entropy(OUTPUT.logits, labels, ignore_index=255, reduction="none")
    weights = balanced_weights(
        uncertainty_weights(labels, OLD.logits, 0.9),
        labels,
        class_weights(SEEN + count_classes(labels, NUM_OLD + NUM_NEW), NUM_OLD),
    ).masked_fill(labels == 255, 0)
    expected = (weights * is_own * loss).sum() / weights.sum()
    torch.testing.assert_close(terms_of(halved)["cross_entropy"], expected)


def test_it_needs_the_old_model_and_new_classes_whatever_it_stands_on() -> None:
    for name in ("mbs_ucb", "plop_ucb", "ssul_ucb"):
        kind = METHODS[name]
        assert issubclass(kind, UCB)
        assert kind.needs_new_classes
        assert make_method(kind).needs_old_model
        assert kind.base_step is METHODS[name.removesuffix("_ucb")].base_step


def test_a_killed_step_with_memory_goes_on_counting_and_ends_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("method=mbs_ucb", "setting=disjoint", "memory.size=4", "train.num_epochs=2", "save_every=1")
    plain, killed = (tiny(tmp_path, name, *SEGMENTER, *fields) for name in ("plain", "killed"))
    train(plain)
    num_images = load_checkpoint(checkpoint_path(plain.run_dir, 1))["num_train_images"]
    seen = load_checkpoint(checkpoint_path(plain.run_dir, 1))["method_state"]["class_pixels"]
    assert seen.sum() == 2 * (num_images // 4) * 4 * 32 * 32
    with killed_before(5, monkeypatch):
        train(killed)
    train(killed)
    assert outcome(killed.run_dir) == outcome(plain.run_dir)
