"""What training does on GPUs, as far as a machine without one can show."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from methods import METHODS, means, prototype_replay
from methods.base import Output
from methods.finetune import Finetune
from models import SegOutput
from tests.support.cli import write_tiny_config
from tests.support.fake_gpu import GPU, HostWaitsError, Watch, fake, make_fake
from tests.support.training import WORKER, tiny, train
from tests.trainer.test_gradients import make_batch, make_begun_learner, make_config, make_learner
from trainer import iteration, looks
from trainer.checks import uses_sync_batch_norm
from trainer.config import Config, load_config
from trainer.iteration import Learner, backward, wrap
from trainer.kernels import fastest_convolutions, fixed_order
from trainer.learn import step_dataset, whole_datasets
from trainer.looks import StepLooks
from trainer.optim import build_optimizer
from trainer.plan import Plan, prepare
from trainer.rare import RareConfig, RareTerms, weight_table
from trainer.run import run
from trainer.session import Session
from trainer.step import update
from utils.distributed import Worker
from utils.loading import ReadAhead

CPU = torch.device("cpu")
TRAINED = [name for name, method in METHODS.items() if method.trains]


class Unscaled:
    """Stands for the loss scaler; without a GPU, its loss has no backward pass there."""

    def scale(self, loss: Tensor) -> "Unscaled":
        assert loss.requires_grad
        return self

    def backward(self) -> None:
        pass


def make_fake_learner(config: Config, mode: FakeTensorMode, device: torch.device) -> Learner:
    """What learns in a step, after the looks that its method takes, on a device without values."""
    learner = make_begun_learner(config)
    method = learner.method
    make_fake(learner.network, mode, device)
    if learner.old_model is not None:
        make_fake(learner.old_model, mode, device)
    method.state = {name: fake(x, mode, device) for name, x in method.state.items()}
    return learner


@pytest.fixture(autouse=True)
def _noise_without_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replayed features draw as anybody does: a machine without a GPU cannot make a generator there."""

    def draw(state: object, num_features: int, *size_and_device: Any) -> tuple[Tensor, Tensor]:
        size, device = size_and_device
        noise, length_noise = (torch.randn(num_features, x, device=device) for x in (size, 1))
        return noise, length_noise

    monkeypatch.setattr(prototype_replay, "draw_noise", draw)


def fake_batch(mode: FakeTensorMode, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = make_batch()
    return fake(images, mode, device), fake(labels, mode, device)


RANDOM_ORDER = {
    "upsample_linear1d",
    "upsample_bicubic2d",
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "reflection_pad2d",
    "nll_loss_forward",
    "nll_loss2d_forward",
    "grid_sampler_2d",
    "median",
    "histc",
}
"""Of what PyTorch lists as without a fixed order on GPUs (torch.use_deterministic_algorithms), what networks and losses
might use; upsampling has a form of its own (tests/utils/test_upsampling.py)."""


@pytest.mark.parametrize(
    ("method", "model"), [*((method, "deeplabv3") for method in TRAINED), ("mbs", "segmenter")]
)
def test_the_host_never_waits_for_the_gpu_and_every_kernel_has_a_fixed_order(
    method: str, model: str, tmp_path: Path
) -> None:
    config, mode = make_config(tmp_path, model, method=(f"method={method}",)), FakeTensorMode()
    learner, batch = make_fake_learner(config, mode, GPU), fake_batch(mode, GPU)
    with mode, Watch() as watch:
        terms = backward(learner, learner.network, [batch], cast(Any, Unscaled()), config, Worker(GPU))
    assert {term.device for term in terms.values()} == {GPU}
    assert watch.seen & RANDOM_ORDER == set()


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_nor_does_the_host_wait_in_the_terms_for_rare_classes(scores: str) -> None:
    mode = FakeTensorMode()
    config = RareConfig(class_weights={"a": 3.0}, dice_weight=1.0, focal_weight=1.0)
    rare = RareTerms(config, scores, 3, 5, fake(weight_table({3: 2.0}), mode))
    method = Finetune(Finetune.Options(), 3, 2)
    with mode, torch.device(GPU):
        output, labels = cast(Output, make_output(5)), torch.zeros(2, 8, 8, dtype=torch.int64)
        with Watch() as watch:
            targets = rare.ask(method.targets(labels, output))
            terms = means(rare.terms(output, targets), targets.counts)
    assert set(terms) == {"class_weights", "dice", "focal"}
    assert watch.seen & RANDOM_ORDER == set()


@pytest.mark.parametrize("method", TRAINED)
def test_no_number_is_read_from_a_tensor_in_a_whole_iteration(method: str, tmp_path: Path) -> None:
    """From the images to the update, backward pass and all, which only CPUs have for tensors without values."""
    config, mode = make_config(tmp_path, "deeplabv3", method=(f"method={method}",)), FakeTensorMode()
    learner, batch = make_fake_learner(config, mode, CPU), fake_batch(mode, CPU)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with mode, Watch():
        optimizer = build_optimizer(learner.network, config.train, is_base_step=False)
        backward(learner, learner.network, [batch], scaler, config, WORKER)
        update(learner.network, optimizer, scaler, clip_grad_norm=1.0)
    assert any(optimizer.state.values()), "weights have moved"


def make_output(num_classes: int) -> SegOutput:
    """What DeepLabV3 might return for 2 images of 8 x 8."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, requires_grad=True)

    logits, grid_logits = zeros(2, num_classes, 8, 8), zeros(2, num_classes, 4, 4)
    features, stages = zeros(2, 8, 4, 4), tuple(zeros(2, 4, 4, 4) for _ in range(4))
    return SegOutput(logits, grid_logits, features, zeros(num_classes, 8), None, stages, backbone=features)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: x.cpu(),
        lambda x: x.new_tensor(3),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: x[x > 0],
        lambda x: x[x > 0].sum(),
        lambda x: x.nonzero(),
        lambda x: x.long().unique(),
        lambda x: torch.bincount(x.long()),
        lambda x: x.__setitem__(torch.arange(2, device=x.device), 1.0),
        lambda x: x.copy_(torch.zeros(4)),
    ],
)
def test_the_watch_finds_every_way_to_wait(wait: Callable[[Tensor], object]) -> None:
    with FakeTensorMode():
        x = torch.zeros(4, device=GPU)
        with Watch(), pytest.raises(HostWaitsError):
            wait(x)


@pytest.mark.parametrize(
    ("sync_bn", "batch_size", "accumulate", "expected"),
    [
        ("auto", 16, 1, False),
        ("auto", 14, 1, True),
        ("auto", 16, 2, True),
        ("true", 16, 1, True),
        ("false", 2, 1, False),
    ],
)
def test_batch_norm_is_synchronised_as_asked_and_with_auto_below_8_images_at_once(
    sync_bn: str, batch_size: int, accumulate: int, expected: bool, tmp_path: Path
) -> None:
    fields = (f"sync_bn={sync_bn}", f"batch_size={batch_size}", f"accumulate={accumulate}")
    config = load_config(write_tiny_config(tmp_path), [f"train.{field}" for field in fields])
    assert uses_sync_batch_norm(config, Worker(GPU, rank=0, world_size=2)) is expected
    assert not uses_sync_batch_norm(config, Worker(GPU))
    assert not uses_sync_batch_norm(config, Worker(CPU, rank=0, world_size=2))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_all_weights_are_updated_by_one_kernel_on_a_gpu_and_as_before_on_a_cpu(
    optimizer: str, tmp_path: Path
) -> None:
    config, mode = make_config(tmp_path, "deeplabv3", f"train.optimizer={optimizer}"), FakeTensorMode()
    learner = make_learner(config)
    assert build_optimizer(learner.network, config.train, is_base_step=True).defaults["fused"] is None
    make_fake(learner.network, mode)
    with mode:
        assert build_optimizer(learner.network, config.train, is_base_step=True).defaults["fused"] is True


def test_ranks_share_gradients_in_the_buckets_they_travel_in_and_no_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def wrapper(module: nn.Module, **options: Any) -> nn.Module:
        asked.update(options)
        return module

    monkeypatch.setattr(iteration, "DistributedDataParallel", wrapper)
    config = make_config(tmp_path, "deeplabv3")
    wrapped = wrap(make_learner(config), config, Worker(GPU, rank=0, world_size=2))
    assert asked == {"device_ids": [GPU], "gradient_as_bucket_view": True}
    assert wrapped.broadcast_buffers is False


def test_cudnn_tries_its_kernels_where_sizes_stay_and_never_in_a_fixed_order() -> None:
    def tries(sizes_stay: bool) -> bool:
        with fastest_convolutions(sizes_stay):
            return torch.backends.cudnn.benchmark

    before = torch.backends.cudnn.benchmark
    assert (tries(True), tries(False)) == (True, False)
    with fixed_order(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not tries(True)
    with fixed_order(False):
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark is before
    assert not torch.are_deterministic_algorithms_enabled()


def test_looks_before_a_step_bring_bytes_to_the_gpu_from_memory_that_is_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For thresholds, statistics and sums: 64-bit labels would take eight times as long, and the host would wait."""
    moved: set[tuple[torch.dtype, torch.device]] = set()
    pinned: list[bool] = []

    def note_move(batch: tuple[Tensor, Tensor], device: torch.device, channels_last: bool) -> Any:
        moved.update((x.dtype, device) for x in batch)
        return batch

    def unpinned(dataset: Any, pin_memory: bool, **how: Any) -> Any:
        pinned.append(pin_memory)
        return ReadAhead(dataset, **how)

    monkeypatch.setattr(looks, "move", note_move)
    monkeypatch.setattr(looks, "ReadAhead", unpinned)
    config = tiny(tmp_path, "looks", "method=finetune")
    plan = prepare(config, WORKER)
    session, step = (
        cast(Session, SimpleNamespace(config=config, plan=plan, worker=Worker(GPU))),
        plan.task.steps[1],
    )
    model = plan.base_network[0].model
    dataset, whole = step_dataset(plan, step, model), partial(whole_datasets, session, step)
    taken = StepLooks(session, step, dataset, lambda: dataset, whole, None)
    first = [next(iter(taken._batches(dataset))), next(taken.batches(1))[1][0], next(taken.whole_images())]
    assert all(images.dtype == labels.dtype == torch.uint8 for images, labels in first)
    assert moved == {(torch.uint8, GPU)}
    assert pinned == [True] * 3


@pytest.fixture(scope="module")
def deterministic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, Any]]:
    """A plan that has run with train.deterministic, and its results."""
    config = tiny(tmp_path_factory.mktemp("deterministic"), "fixed", "train.deterministic=true")
    plan = prepare(config, WORKER)
    assert len(plan.base_network) == 1
    run(plan, WORKER)
    return plan, json.loads((config.run_dir / "results.json").read_text())


def test_a_run_lets_go_of_the_base_steps_network(deterministic: tuple[Plan, dict[str, Any]]) -> None:
    assert deterministic[0].base_network == []


def test_a_deterministic_run_differs_by_rounding_and_leaves_pytorch_as_it_was(
    deterministic: tuple[Plan, dict[str, Any]], tmp_path: Path
) -> None:
    plain = train(tiny(tmp_path, "plain"))
    fixed = deterministic[1]
    assert fixed["steps"][0]["miou_all"] == pytest.approx(plain["steps"][0]["miou_all"], abs=0.02)
    assert not torch.are_deterministic_algorithms_enabled()
