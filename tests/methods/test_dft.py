"""methods/dft.py: rows of classes to come learn from the base step on, and nothing old ever moves."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from methods.base import Output, means
from methods.dft import DFT, DFTBase
from models import SegmentationModel, SegOutput
from tests.support.golden import load_method_golden
from tests.support.training import SEGMENTER, WORKER, outcome, tiny, train, weights
from tests.trainer.test_resume import killed_before
from trainer.checkpoint import checkpoint_path, load_checkpoint, new_model
from trainer.plan import prepare
from trainer.run import run

THREE_STEPS = "task=[[ring, disc], [star], [cross]]"
SAME_SIZE = cast(SegmentationModel, SimpleNamespace(to_image_size=lambda logits, size: logits))


def loss_of(
    method: DFTBase, features: Tensor, rows: Tensor, biases: Tensor, labels: Tensor, known: int
) -> Tensor:
    """The cross-entropy where the model has the first `known` rows and the method's part all others."""
    method.modules = torch.nn.ModuleDict(method.parts(features.shape[1]))
    future, method.model = method.modules["future"], SAME_SIZE
    future.weight = torch.nn.Parameter(rows[known:, :, None, None].detach())
    future.bias = torch.nn.Parameter(biases[known:].detach())
    logits = torch.einsum("bdhw,kd->bkhw", features, rows[:known]) + biases[:known, None, None]
    output = cast(Output, SegOutput(logits, logits, features, rows[:known], None))
    targets = method.targets(labels, output)
    return means(method.terms(output, output, targets), targets.counts)["cross_entropy"]


@pytest.mark.parametrize(("label", "expected"), [(1, [-0.5, 0.25]), (0, [0.5, 0.25])])
def test_gradients_of_new_and_future_rows_by_hand(label: int, expected: list[float]) -> None:
    """Logits 0, ln 2, 0 for background, new and future: probabilities ¼, ½, ¼; the gradient is (p − y) · f."""
    rows = torch.tensor([[0.0], [math.log(2)], [0.0]], requires_grad=True)
    method = DFT(DFT.Options(), 1, 1)  # one class is left in the part
    loss = loss_of(
        method, torch.ones(1, 1, 1, 1), rows, torch.zeros(3), torch.full((1, 1, 1), label), known=2
    )
    found = torch.autograd.grad(loss, (rows, method.modules["future"].get_parameter("weight")))
    assert [float(found[0][1]), float(found[1])] == pytest.approx(expected)


def test_loss_and_gradients_over_all_rows_are_the_golden_ones() -> None:
    golden = load_method_golden("DFT")
    rows, biases = (golden[name].clone().requires_grad_() for name in ("weight", "bias"))
    method = DFT(DFT.Options(), 3, 1, 1)  # the part holds two rows
    loss = loss_of(method, golden["features"], rows, biases, golden["labels"], known=4)
    torch.testing.assert_close(loss, golden["loss_mean_over_labelled"], rtol=1e-6, atol=1e-6)
    future = method.modules["future"]
    found = torch.autograd.grad(
        loss, (rows, biases, future.get_parameter("weight"), future.get_parameter("bias"))
    )
    weight, bias = torch.cat([found[0][:4], found[2][..., 0, 0]]), torch.cat([found[1][:4], found[3]])
    torch.testing.assert_close(weight, golden["grad_weight"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, golden["grad_bias"], rtol=1e-5, atol=1e-6)


def test_three_steps_move_rows_from_the_part_into_the_model_and_train_no_old_one(tmp_path: Path) -> None:
    config = tiny(
        tmp_path, "run", "method=dft", THREE_STEPS, "train.weight_decay=0.1", "train.lr_incremental=0.1"
    )
    plan = prepare(config, WORKER)
    assert plan.base_network
    start = {name: x.clone() for name, x in plan.base_network[0].parts.state_dict().items()}
    run(plan, WORKER)
    saved = [load_checkpoint(checkpoint_path(config.run_dir, step)) for step in range(3)]
    parts = [checkpoint["parts"].get("future.weight", torch.zeros(0)) for checkpoint in saved]
    assert [len(rows) for rows in parts] == [2, 1, 0]
    assert not torch.equal(parts[0], start["future.weight"]), "the base step teaches rows to come"
    assert not torch.equal(parts[1], parts[0][1:]), "they go on learning"
    assert [checkpoint["num_classes"] for checkpoint in saved] == [[3], [3, 1], [3, 1, 1]]
    for step in (1, 2):
        before, after = (saved[i]["model"] for i in (step - 1, step))
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert not torch.equal(after[f"classifier.heads.{step}.weight"], parts[step - 1][:1])


def test_a_step_begins_with_the_rows_that_the_steps_before_have_left(tmp_path: Path) -> None:
    config = tiny(tmp_path, "run", "method=dft")
    method = DFT(config.method, 3, 1, 1)
    method.modules = torch.nn.ModuleDict(method.parts(config.model.channels))
    rows = method.modules["future"].get_parameter("weight").detach().clone()
    model = new_model(config, [3])
    method.add_classes(model, 1)
    heads: Any = model.get_submodule("classifier.heads")
    assert torch.equal(heads[1].weight, rows[:1])
    assert torch.equal(method.modules["future"].get_parameter("weight"), rows[1:])


def test_a_run_killed_in_a_step_ends_bit_for_bit_disjoint_and_with_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = (
        "method=dft",
        "save_every=1",
        THREE_STEPS,
        "memory.size=8",
        "setting=disjoint",
        "train.batch_size=2",
    )
    plain, killed = (tiny(tmp_path, name, *fields) for name in ("plain", "killed"))
    train(plain)
    num_iterations = len(outcome(plain.run_dir, num_steps=3)["curves"]["cross_entropy"])
    with killed_before(num_iterations - 3, monkeypatch):
        train(killed)
    train(killed)
    assert outcome(killed.run_dir, num_steps=3) == outcome(plain.run_dir, num_steps=3)


def test_base_steps_without_rows_to_come_serve_those_with_other_ones_are_refused(tmp_path: Path) -> None:
    base = tiny(tmp_path, "base", "method=dft", "task=[[ring, disc], [star, cross]]")
    train(base)
    init_from = f"init_from={checkpoint_path(base.run_dir, 0)}"
    fewer = tiny(tmp_path, "fewer", "method=dft", "task=[[ring, disc], [star]]", init_from)
    told = r"init_from: .* modules of the method: .*; take a base step of a run with the same task"
    with pytest.raises(ValueError, match=told):
        prepare(fewer, WORKER)
    other = tiny(tmp_path, "other", "method=finetune", "task=[[ring, disc]]")
    train(other)
    taken = f"init_from={checkpoint_path(other.run_dir, 0)}"
    config = tiny(tmp_path, "untrained", "method=dft", THREE_STEPS, taken)
    train(config)
    assert "trained without its modules (future)" in (config.run_dir / "log.txt").read_text()
    assert len(weights(config, 2)["classifier.heads.2.bias"]) == 1


def test_a_model_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method\.name: dft is about the rows of a 1x1 classifier"):
        tiny(tmp_path, "vit", "method=dft", *SEGMENTER)
