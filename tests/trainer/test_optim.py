"""trainer/optim.py: schedules by hand, parameter groups, frozen BatchNorm."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from models import DeepLabV3
from tests.support.cli import write_tiny_config
from tests.support.golden import load_rival
from trainer.config import load_config
from trainer.network import Network
from trainer.optim import build_optimizer, build_schedule, freeze_batch_norm
from trainer.sections import TrainConfig


def train_config(folder: Path, *overrides: str) -> TrainConfig:
    return load_config(write_tiny_config(folder), overrides).train


def small_model() -> DeepLabV3:
    model = DeepLabV3([3], DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=8))
    model.grow(2, start="background")
    return model.train()


def network_of(model: DeepLabV3, **parts: nn.Module) -> Network:
    """A model and modules of a method beside it."""
    return Network(model, nn.ModuleDict(parts))


def learning_rates(schedule: str, num_iterations: int, warmup: float = 0.0, lr: float = 0.1) -> list[float]:
    """The learning rate of every iteration of a step, and the one after."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = build_schedule(optimizer, schedule, num_iterations, warmup)
    rates = []
    for _ in range(num_iterations + 1):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates


def test_poly_by_hand() -> None:
    expected = [0.1, 0.1 * 0.75**0.9, 0.1 * 0.5**0.9, 0.1 * 0.25**0.9, 0.0]
    assert learning_rates("poly", 4) == pytest.approx(expected)


def test_cosine_by_hand() -> None:
    expected = [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5)), 0.0]
    assert learning_rates("cosine", 4) == pytest.approx(expected)


def test_constant_stays() -> None:
    assert learning_rates("constant", 4) == [0.1] * 5


def test_a_warm_up_by_hand() -> None:
    expected = [0.0001, 0.1 * (0.001 + 0.999 / 2), 0.1, 0.1, 0.1]
    assert learning_rates("constant", 4, warmup=0.5) == pytest.approx(expected)
    assert learning_rates("poly", 4, warmup=0.25)[1:] == learning_rates("poly", 4)[1:], (
        "over after an iteration"
    )


@pytest.mark.parametrize(
    ("released", "warmup"),
    [
        ("out_poly_mib_plop_dkdvoc_lr1", 0.0),
        ("out_poly_ssul_lr1_min1e6", 0.0),
        ("out_warm_poly_ssul_ade_lr1", 0.1),
        ("out_warm_poly_dkd_ade_lr1", 0.2),
    ],
)
def test_schedules_are_those_of_the_released_code(released: str, warmup: float) -> None:
    expected = load_rival("schedules")[released].tolist()
    rates = learning_rates("poly", len(expected), warmup, lr=1.0)
    assert rates[:-1] == pytest.approx(expected, rel=1e-10, abs=0)


def test_the_config_asks_for_the_warm_up(tmp_path: Path) -> None:
    train = train_config(tmp_path, "train.warmup=0.2", "train.nesterov=true")
    assert (train.warmup, train.nesterov) == (0.2, True)


def test_the_schedule_moves_all_groups_alike(tmp_path: Path) -> None:
    optimizer = build_optimizer(
        network_of(small_model()), train_config(tmp_path, "train.lr_head_factor=10"), is_base_step=True
    )
    scheduler = build_schedule(optimizer, "poly", 2)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.01 * 0.5**0.9, 0.1 * 0.5**0.9, 0.1 * 0.5**0.9])


@pytest.mark.parametrize(
    ("is_base_step", "overrides", "rates"),
    [
        (True, [], [0.02, 0.1, 0.1]),
        (False, [], [0.004, 0.02, 0.02]),
        (True, ["train.lr_classifier_incremental=0.5"], [0.02, 0.1, 0.1]),
        (False, ["train.lr_classifier_incremental=0.5"], [0.004, 0.02, 0.5]),
    ],
)
def test_groups_are_backbone_heads_and_classifier_each_at_its_rate(
    tmp_path: Path, is_base_step: bool, overrides: list[str], rates: list[float]
) -> None:
    overrides = ["train.lr_head_factor=5", "train.lr_base=0.02", "train.lr_incremental=0.004", *overrides]
    model = small_model()
    optimizer = build_optimizer(network_of(model), train_config(tmp_path, *overrides), is_base_step)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)
    names = {id(p): name.split(".")[0] for name, p in model.named_parameters()}
    parts = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert parts == [{"backbone"}, {"aspp", "project"}, {"classifier"}]


def test_the_modules_of_a_method_learn_at_the_rate_of_the_classifier(tmp_path: Path) -> None:
    part = nn.Linear(2, 1)
    overrides = ["train.lr_classifier_incremental=0.5"]
    network = network_of(small_model(), part=part)
    optimizer = build_optimizer(network, train_config(tmp_path, *overrides), is_base_step=False)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in part.parameters()] == [0.5, 0.5]


def test_weights_decay_in_the_new_classes_only_where_the_config_says_so(tmp_path: Path) -> None:
    network = network_of(small_model(), part=nn.Linear(2, 1))
    config = train_config(tmp_path, "train.weight_decay_on=new_classes", "train.weight_decay=0.03")
    for is_base_step in (True, False):
        optimizer = build_optimizer(network, config, is_base_step)
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        newest = {id(p) for p in network.model.newest_parameters()}
        expected = {id(p): 0.03 if is_base_step or id(p) in newest else 0.0 for p in network.parameters()}
        assert decay == expected


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_every_trainable_parameter_is_in_exactly_one_group(
    tmp_path: Path, frozen: bool, optimizer_name: str
) -> None:
    model = small_model()
    if frozen:
        freeze_batch_norm(model)
    optimizer = build_optimizer(
        network_of(model), train_config(tmp_path, f"train.optimizer={optimizer_name}"), is_base_step=True
    )
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert (len(grouped) == len(list(model.parameters()))) is not frozen


def test_optimisers_take_their_settings_from_the_config(tmp_path: Path) -> None:
    overrides = ["train.momentum=0.8", "train.nesterov=true", "train.weight_decay=0.03"]
    sgd = build_optimizer(network_of(small_model()), train_config(tmp_path, *overrides), is_base_step=True)
    assert isinstance(sgd, torch.optim.SGD)
    for group in sgd.param_groups:
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, True, 0.03)
    overrides = ["train.momentum=0.8", "train.optimizer=adamw", "train.weight_decay=0.03"]
    adamw = build_optimizer(network_of(small_model()), train_config(tmp_path, *overrides), is_base_step=True)
    assert isinstance(adamw, torch.optim.AdamW)
    for group in adamw.param_groups:
        assert (group["betas"], group["weight_decay"]) == ((0.8, 0.999), 0.03)


def batch_norm_state(model: DeepLabV3) -> dict[str, torch.Tensor]:
    """Statistics and affine parameters of all BatchNorms."""
    return {
        f"{name}.{key}": value.clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key, value in module.state_dict().items()
    }


def test_frozen_batch_norm_keeps_statistics_and_affine_through_an_update(tmp_path: Path) -> None:
    model = small_model()
    freeze_batch_norm(model)
    before = batch_norm_state(model)
    optimizer = build_optimizer(
        network_of(model),
        train_config(tmp_path, "train.weight_decay=0.1", "train.lr_incremental=0.1"),
        is_base_step=False,
    )
    tokens = model.classifier.class_tokens().detach().clone()
    model(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)).logits.square().mean().backward()
    optimizer.step()
    after = batch_norm_state(model)
    assert len(before) > 50
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(model.classifier.class_tokens(), tokens), "the rest learns"
    assert all(
        p.grad is None for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    )


def test_batch_norm_that_is_not_frozen_learns_statistics_and_affine() -> None:
    model = small_model()
    before = batch_norm_state(model)
    model(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)).logits.square().mean().backward()
    after = batch_norm_state(model)
    assert not any(torch.equal(after[n], v) for n, v in before.items() if n.endswith("running_mean"))
    assert all(p.grad is not None for p in model.project.parameters())


def test_freezing_leaves_other_modules_in_training_mode() -> None:
    model = small_model()
    freeze_batch_norm(model)
    assert model.training
    assert model.backbone.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
