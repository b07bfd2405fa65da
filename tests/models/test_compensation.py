"""models/compensation.py: two branches, their merge, and what is frozen, by hand and against the released code."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import DeepLabV3
from models.compensation import TwoBranches, gates, merge_branches, two_branches
from tests.support.golden import assert_matches_golden, load_method_golden

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def make_layer(drop: float = 0.66) -> TwoBranches:
    """A layer whose branches have gone apart."""
    torch.manual_seed(0)
    layer = TwoBranches(nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(4), drop)
    with torch.no_grad():
        for x in (*layer.parameters(), *layer.buffers()):
            if x.is_floating_point():
                x.add_(0.3 * torch.rand_like(x))
        layer.norms[1].get_parameter("weight").neg_()
    return layer


def x() -> Tensor:
    return torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def test_merge_by_hand() -> None:
    one = torch.ones(1)
    weight, bias = merge_branches(
        [2 * one.view(1, 1, 1, 1), 4 * one.view(1, 1, 1, 1)],
        [3 * one, one],
        [0.5 * one, -one],
        [0 * one, 2 * one],
        [2 * one, 2 * one],
    )  # the first convolution's bias of 1 and mean of 1 are a mean of 0
    assert weight.item() == 2.5
    assert bias.item() == -0.75


def test_merge_is_that_of_the_released_code() -> None:
    golden = load_method_golden("RCIL")
    eps = float(golden["merge.eps"])

    def of(name: str) -> list[Tensor]:
        return [golden[f"merge.bn{i}.{name}"] for i in (1, 2)]

    means = of("running_mean")
    weight, bias = merge_branches(
        [golden["merge.conv1.weight"], golden["merge.conv2.weight"]],
        [w.abs() + eps for w in of("weight")],
        of("bias"),
        [means[0] - golden["merge.conv1.bias"], means[1]],
        [(variance + eps).sqrt() for variance in of("running_var")],
    )
    torch.testing.assert_close(weight, golden["merge.weight"], **CLOSE)
    torch.testing.assert_close(bias, golden["merge.bias"], **CLOSE)
    torch.testing.assert_close(
        F.conv2d(golden["merge.x"], weight, bias, padding=1), golden["merge.output"], rtol=1e-4, atol=1e-5
    )


def test_a_bottleneck_of_two_branches_is_that_of_the_released_code(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_method_golden("RCIL")

    def state(name: str) -> dict[str, Tensor]:
        prefix = f"block.convs.{name}."
        return {key.removeprefix(prefix): x for key, x in golden.items() if key.startswith(prefix)}

    def load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        missing = module.load_state_dict(weights, strict=False)
        assert set(missing.missing_keys) <= {"num_batches_tracked"}
        assert not missing.unexpected_keys

    layer = TwoBranches(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), 0.66)
    ends = [
        (nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
        (nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)),
    ]
    for (conv, norm), i in zip(ends, (1, 3), strict=True):
        load(conv, state(f"conv{i}"))
        load(norm.eval(), state(f"bn{i}"))
    for branch, suffix in enumerate(("2", "2_new")):
        load(layer.convs[branch], state(f"conv{suffix}"))
        load(layer.norms[branch], state(f"bn{suffix}"))
    inner = F.leaky_relu(ends[0][1](ends[0][0](golden["block.x"])), 0.01)

    def end(x: Tensor) -> Tensor:
        x = ends[1][1](ends[1][0](F.leaky_relu(x, 0.01)))
        return F.leaky_relu(x + golden["block.x"], 0.01)

    layer.eval()
    for branch in range(2):
        expected = golden[f"block.branch{branch + 1}"]
        assert_matches_golden(layer.norms[branch](layer.convs[branch](inner)), expected)
    torch.testing.assert_close(end(layer(inner)), golden["block.eval_output"], **CLOSE)
    layer.train()
    layer.norms.eval()
    monkeypatch.setattr(torch, "rand", lambda *size, **how: golden["block.train_r"].view(size))
    torch.testing.assert_close(end(layer(inner)), golden["block.train_output"], **CLOSE)


def test_gates_take_one_branch_or_the_other_or_their_mean() -> None:
    r = torch.tensor([0.0, 0.32, 0.34, 0.65, 0.67, 0.99])
    assert gates(r, 0.66).tolist() == [1, 1, 0, 0, 0.5, 0.5]


def test_a_layer_starts_as_what_it_replaces_and_mixes_channels_in_training_alone() -> None:
    conv, norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    layer = TwoBranches(conv, norm, 0.66)
    torch.testing.assert_close(layer.eval()(x()), norm(conv(x())))
    apart = make_layer().train()
    apart.norms.eval()
    assert not torch.equal(apart(x()), apart(x()))
    assert torch.equal(apart.eval()(x()), apart(x()))


def test_the_merged_branch_is_the_layer_as_it_was_and_remembers() -> None:
    layer = make_layer().eval()
    before, second = layer(x()), copy.deepcopy(layer.norms[1])(layer.convs[1](x()))
    layer.merge()
    torch.testing.assert_close(layer.norms[0](layer.convs[0](x())), before, **CLOSE)
    assert torch.equal(layer.norms[1](layer.convs[1](x())), second)
    torch.testing.assert_close(layer(x()), 0.5 * before + 0.5 * second, **CLOSE)
    kept = {name: value.clone() for name, value in layer.state_dict().items() if ".0." in name}
    layer.train()
    layer(x()).sum().backward()
    learning = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert learning == {"convs.1.weight", "norms.1.weight", "norms.1.bias"}
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in kept.items())
    assert layer.norms[1].get_buffer("num_batches_tracked") == 1


def test_a_merged_layer_survives_a_checkpoint() -> None:
    layer, other = make_layer(), make_layer()
    layer.merge()
    other.load_state_dict(layer.state_dict())
    other.train()
    assert not other.norms[0].training
    assert other.norms[1].training
    assert torch.equal(other.eval()(x()), layer.eval()(x()))


def test_bottlenecks_and_the_parallel_convolutions_of_aspp_get_two_branches() -> None:
    options = {"backbone": "test_resnet", "pretrained": False, "channels": 6}
    torch.manual_seed(0)
    plain = DeepLabV3([3], DeepLabV3.Options(**options), 32)
    torch.manual_seed(0)
    model = DeepLabV3([3], DeepLabV3.Options(**options, compensation=True), 32)
    names = [name for name, module in model.named_modules() if isinstance(module, TwoBranches)]
    assert names == ["backbone.layer3.0.conv2", *(f"aspp.branches.{i}.0" for i in range(4))]
    assert len(list(two_branches(plain))) == 0
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.eval()(images).logits, plain.eval()(images).logits)


def test_a_backbone_without_bottlenecks_is_refused_by_name() -> None:
    options = DeepLabV3.Options(backbone="resnet18", pretrained=False, compensation=True)
    with pytest.raises(ValueError, match=r"model\.compensation: 'resnet18' has no bottleneck"):
        DeepLabV3([3], options, 32)


def test_stages_are_handed_out_before_or_behind_their_activation() -> None:
    model = DeepLabV3([3], DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=6), 32).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's zeros would leave the shortcut alone
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    before, behind = (model(images, with_stages=kind).stages for kind in (True, "activated"))
    assert before[0].min() < 0
    for given, activated in zip(before, behind, strict=True):
        torch.testing.assert_close(given.relu(), activated)
