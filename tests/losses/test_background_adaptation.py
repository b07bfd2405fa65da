"""losses/background_adaptation.py and models/residual_background.py: BARM by hand and as released."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.background_adaptation import (
    adaptation_cross_entropy,
    adaptation_triplet,
    background_features,
    group_distillation,
    training_logits,
)
from losses.binary_cross_entropy import binary_cross_entropy, sigmoid_pseudo_labels
from models.deeplabv3 import conv_bn_relu
from models.output import upsample
from models.residual_background import ResidualBackground, join_outputs
from tests.support.golden import load_method_golden

YES = torch.ones(1, 1, 1, dtype=torch.bool)


def maps(*values: float) -> Tensor:
    """A map (1,K,1,1) of one cell."""
    return torch.tensor(values)[None, :, None, None].requires_grad_()


def test_the_background_is_lowered_and_only_the_newest_residual_learns_by_hand() -> None:
    outputs = [maps(2.0, 9.0), maps(-1.5, 8.0), maps(0.7, 7.0)]
    trained, seen = training_logits(outputs), join_outputs(outputs)
    torch.testing.assert_close(trained.flatten(), torch.tensor([1.2, 9, 8, 7]))
    torch.testing.assert_close(seen.flatten(), torch.tensor([0.5, 9, 8, 7]))
    gradients = torch.autograd.grad(trained.sum(), outputs, allow_unused=True)
    assert gradients[:2] == (None, None)
    assert gradients[2] is not None
    assert gradients[2].flatten().tolist() == [1, 1]


def test_a_network_of_the_base_step_has_its_own_background() -> None:
    assert join_outputs([maps(2.0, 9.0)]).flatten().tolist() == [2, 9]


def test_the_residual_is_to_fall_on_new_classes_by_hand() -> None:
    total, count = adaptation_cross_entropy(torch.full((1, 1, 1), math.log(3)), YES)
    assert (total.item(), int(count)) == (pytest.approx(1.386294), 1)
    total, count = adaptation_cross_entropy(torch.full((1, 1, 1), 3.0), ~YES)
    assert (total.item(), int(count)) == (0, 0)


def test_the_residual_is_not_to_fall_on_background_by_hand() -> None:
    residual = torch.tensor([[[0.0, -math.log(3), 5.0]]])
    both = torch.tensor([[[True, True, False]]])
    total, count = adaptation_triplet(residual, both)
    assert total.item() / int(count) == pytest.approx(0.25)
    total, _ = adaptation_triplet(residual, ~both)
    assert total.item() == 0


def test_groups_are_distilled_as_themselves_by_hand() -> None:
    for logit, expected in ((0.0, 0.693147), (math.log(3), 0.562335)):
        total = group_distillation([maps(logit), maps(100.0)], [maps(math.log(3))])
        assert total.item() == pytest.approx(expected, abs=1e-6)


def test_features_are_kept_on_background_by_hand() -> None:
    new, old = torch.full((1, 1, 1, 2), 2.0), torch.zeros(1, 1, 1, 2)
    total = background_features([new, new], [old], torch.tensor([[[True, False]]]))
    assert total.item() / 2 == 2  # a mean over both cells


# As released


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_method_golden("BARM")


def outputs_of(golden: dict[str, Tensor], kind: str, count: int) -> list[Tensor]:
    return [golden[f"{kind}.{i}"] for i in range(count)]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "prefix", "count"), [("new", "", 3), ("old", "old_", 2)])
def test_the_released_network_is_reproduced(
    golden: dict[str, Tensor], kind: str, prefix: str, count: int
) -> None:
    def part(name: str) -> dict[str, Tensor]:
        start = f"state.{kind}.{name}."
        return {key.removeprefix(start): x for key, x in golden.items() if key.startswith(start)}

    shared = conv_bn_relu(6, 6, 3)
    residuals = ResidualBackground(6, has_ears=True)
    heads = nn.ModuleList()
    shared.load_state_dict(part("head_pre"), strict=False)
    for i in range(count):
        state = part(f"head.{i}")
        if i:
            residuals.grow(shared)
            residuals.ears[-1].load_state_dict(part(f"ear.{i - 1}"), strict=False)
            residuals.rows[-1].load_state_dict({name: x[:1] for name, x in state.items()})
            state = {name: x[1:] for name, x in state.items()}
        heads.append(nn.Conv2d(6, len(state["bias"]), 1))
        heads[-1].load_state_dict(state)
    x = golden[f"{prefix}aspp"]
    ears, outputs = residuals.eval()(x, shared.eval()(x), heads)
    for i in range(count):
        assert_close(ears[i], golden[f"{prefix}ear_feature.{i}"])
        assert_close(outputs[i], golden[f"{prefix}head_out.{i}"])
    assert_close(join_outputs(outputs), golden["logits_grid_eval" if kind == "new" else "old_logits_grid"])
    if kind == "new":
        assert_close(training_logits(outputs), golden["logits_grid"])


def released_terms(golden: dict[str, Tensor], outputs: list[Tensor]) -> dict[str, Tensor]:
    """The five losses by their names there, of raw outputs, with the factors 1."""
    labels, old_outputs = golden["labels"], outputs_of(golden, "old_head_out", 2)
    old_logits = upsample(golden["old_logits_grid"], labels.shape[1:])
    pseudo_labels = sigmoid_pseudo_labels(labels, old_logits, 0.7)
    assert torch.equal(pseudo_labels, golden["pseudo_labels"])
    cells = F.interpolate(labels[:, None].float(), (5, 4))[:, 0]
    is_new, is_background = (cells != 0) & (cells != 255), cells == 0
    assert torch.equal(is_new, golden["positive_grid"][:, 0] == 1)
    assert torch.equal(is_background, golden["negative_grid"][:, 0] == 1)
    logits, residual = upsample(training_logits(outputs), labels.shape[1:]), outputs[-1][:, 0]
    ears, old_ears = (outputs_of(golden, kind, 2) for kind in ("ear_feature", "old_ear_feature"))
    sums: dict[str, tuple[Tensor, Tensor | int]] = {
        "std": binary_cross_entropy(logits, pseudo_labels, 255),
        "bga_ce": adaptation_cross_entropy(residual, is_new),
        "triplet": adaptation_triplet(residual, is_background),
        "tunnel": (background_features(ears, old_ears, is_background), cells.numel() * 6),
        "gkd": (group_distillation(outputs, old_outputs), cells.numel()),
    }
    return {name: total / count for name, (total, count) in sums.items()}


def test_the_released_losses_and_their_gradients_are_reproduced(golden: dict[str, Tensor]) -> None:
    outputs = [x.clone().requires_grad_() for x in outputs_of(golden, "head_out", 3)]
    terms = released_terms(golden, outputs)
    factors = {"std": 1, "bga_ce": 1, "triplet": 5, "tunnel": 4, "gkd": 1}
    for name, factor in factors.items():
        assert_close(terms[name], golden[f"loss.{name}"])
        if name == "tunnel":  # it reaches features, not outputs
            continue
        gradients = torch.autograd.grad(terms[name], outputs, retain_graph=True, allow_unused=True)
        for i, found in enumerate(gradients):
            expected = golden[f"grad.{name}.head_out.{i}"]
            assert_close(torch.zeros_like(expected) if found is None else found, expected)
        assert factor > 0
    total = torch.stack([factors[name] * term for name, term in terms.items()]).sum()
    assert_close(total, golden["loss.total"])
