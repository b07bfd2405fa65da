"""trainer/iteration.py: however a batch is cut, over ranks or micro-batches, the gradient is the same."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from datasets.tasks import build_task
from methods import Output, Targets, method_of_step
from methods.base import Looks
from models import SegmentationModel
from tests.support.cli import write_tiny_config
from tests.support.loaded import start
from tools.bench.iteration import OneBatch
from trainer.checkpoint import new_model
from trainer.config import Config, load_config
from trainer.iteration import Learner, backward, wrap
from trainer.network import Network, make_parts
from trainer.optim import build_optimizer, freeze_batch_norm
from utils.distributed import Worker

CPU = torch.device("cpu")
BATCH = 8
OVERRIDES = (
    "train.clip_grad_norm=1",
    "train.momentum=0.9",
    "train.lr_incremental=1",
)
MBS = ("method=mbs", "method.threshold=0.5", "method.pseudo_label_weight=0.5")
MODELS = {
    # Other cuts draw other numbers: gates of two branches, stochastic depth.
    "deeplabv3": ("model.output_stride=8", "model.branch_drop=0"),
    "segmenter": (
        "model.name=segmenter",
        "model.backbone=test_vit",
        "model.patch_size=8",
        "model.channels=12",
        "model.drop_path=0",
        "model.num_heads=2",
    ),
}
STEP = build_task([["a", "b"], ["c", "d"]], ("background", "a", "b", "c", "d")).steps[1]
Tensors = dict[str, Tensor]
Iteration = tuple[Tensors, Tensors, Tensors]
"""Terms, gradients, and the weights after the update."""


def make_config(folder: Path, model: str, *more: str, method: tuple[str, ...] = MBS) -> Config:
    return load_config(write_tiny_config(folder), [*OVERRIDES, *MODELS[model], *method, *more])


def make_models(config: Config) -> tuple[SegmentationModel, SegmentationModel]:
    """The model of the step, some way into its training, and the old model, sure of some pixels."""
    torch.manual_seed(0)
    old_model = new_model(config, [STEP.num_old])
    with torch.no_grad():
        for module in old_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm's zeros would leave whole branches without a gradient
                module.momentum = 1.0  # statistics of the one batch that it sees
        old_model.train()(make_batch()[0])
        for parameter in old_model.classifier_parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    model = new_model(config, [STEP.num_old])
    model.load_state_dict(old_model.state_dict())
    model.grow(STEP.num_new, start="background")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std(correction=0) * torch.randn_like(parameter))
    freeze_batch_norm(model.train())
    return model, old_model.eval().requires_grad_(False)


def make_learner(config: Config) -> Learner:
    """What learns in the step: both models, and the method with state and modules of its own."""
    model, old_model = make_models(config)
    method = method_of_step(config.method, STEP.num_old, STEP.num_new)
    torch.manual_seed(0)
    method.modules = make_parts(method, config)
    method.model = model
    method.state = make_state(config.model.channels)
    return Learner(method, Network(model, method.modules), old_model)


def make_begun_learner(config: Config) -> Learner:
    """What learns in the step, after the looks that its method takes at the batch."""
    learner = make_learner(config)
    assert learner.old_model is not None
    looks = OneBatch(*make_batch(), config, Worker(CPU), learner.old_model)
    learner.method.begin_step(learner.model, cast(Looks, looks))
    return learner


def make_state(channels: int) -> Tensors:
    """What methods may have measured before the step."""
    generator = torch.Generator().manual_seed(2)
    rows = {
        name: torch.rand(STEP.num_old, channels, generator=generator) for name in ("prototypes", "spreads")
    }
    numbers = {name: torch.rand(STEP.num_old) + 0.5 for name in ("length_means", "length_deviations")}
    return {
        "thresholds": torch.full((STEP.num_old,), 0.9),
        **rows,
        **numbers,
        "counts": torch.tensor([90.0, 40.0, 30.0]).double(),
        "replayed": torch.tensor([1] * 5 + [2] * 4),
        "background_ratio": torch.tensor(1.5).double(),
        "noise_seed": torch.tensor(7),
        "class_pixels": torch.tensor([500.0, 90.0, 0.0, 60.0, 20.0]).double(),
    }


def targets_of(learner: Learner) -> Targets:
    """What the step asks of the whole batch."""
    images, labels = make_batch()
    assert learner.old_model is not None
    old = learner.old_model(images, with_stages=learner.method.needs_stages)
    return learner.method.targets(labels, cast(Output, old))


def make_batch() -> tuple[Tensor, Tensor]:
    """Images and labels; the first half has next to nothing but 255, the second half none."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 0, 3, 4])[torch.randint(0, 4, (BATCH, 32, 32), generator=generator)]
    labels[: BATCH // 2, 2:] = 255
    return images, labels


def micro_batches(num_ranks: int, rank: int, accumulate: int) -> list[tuple[Tensor, Tensor]]:
    """One rank's part of the batch."""
    images, labels = make_batch()
    pieces = zip(images.chunk(num_ranks * accumulate), labels.chunk(num_ranks * accumulate), strict=True)
    return list(pieces)[rank * accumulate : (rank + 1) * accumulate]


def one_iteration(config: Config, worker: Worker, accumulate: int) -> Iteration:
    """One update as the loop does it: terms (this rank's shares), gradients, and the weights after it."""
    learner = make_learner(config)
    network = learner.network
    batches = micro_batches(worker.world_size, worker.rank, accumulate)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(network, config.train, is_base_step=False)
    terms = backward(learner, wrap(learner, config, worker), batches, scaler, config, worker)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert config.train.clip_grad_norm is not None
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.train.clip_grad_norm)
    assert norm > config.train.clip_grad_norm
    optimizer.step()
    weights = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    return terms, gradients, weights


def run_rank(
    rank: int,
    num_ranks: int,
    folder: Path,
    model: str,
    more: tuple[str, ...] = (),
    methods: tuple[tuple[str, ...], ...] = (MBS,),
) -> None:
    """One process of a distributed run; leaves iterations of every method in the folder, by number of micro-batches."""
    store, patience = f"file://{folder}/store", timedelta(minutes=2)
    dist.init_process_group("gloo", store, patience, rank=rank, world_size=num_ranks)
    try:
        for number, method in enumerate(methods):
            config = make_config(folder / str(rank), model, *more, method=method)
            for accumulate in (1, 2):
                iteration = one_iteration(config, Worker(CPU, rank, num_ranks), accumulate)
                torch.save(iteration, folder / f"{number}_{rank}_{accumulate}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    """Which model."""
    model: str = request.param
    return model


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(f"gradients_{name}")


@pytest.fixture(scope="module")
def config(folder: Path, name: str) -> Config:
    return make_config(folder, name)


@pytest.fixture(scope="module")
def whole(config: Config) -> Iteration:
    """The reference: one process, one batch."""
    return one_iteration(config, Worker(CPU), accumulate=1)


def relative_difference(ours: Tensors, theirs: Tensors) -> float:
    """The largest ‖a − b‖ / ‖b‖ over all tensors."""
    assert ours.keys() == theirs.keys()
    return float(torch.stack([(ours[name] - x).norm() / x.norm() for name, x in theirs.items()]).max())


def assert_equal_iterations(ours: Iteration, theirs: Iteration) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert relative_difference(a, b) < 1e-5


def test_all_terms_take_part_and_every_trainable_parameter_has_a_gradient(
    config: Config, name: str, whole: Iteration
) -> None:
    terms, gradients, weights = whole
    embeddings = {"segmenter": ["embedding_distillation"], "deeplabv3": []}[name]
    expected = ["cross_entropy", "feature_distillation", *embeddings, "output_distillation", "orthogonal"]
    assert list(terms) == expected
    assert all(term > 1e-3 for term in terms.values())
    learner = make_learner(config)
    network = learner.network
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    assert sorted(gradients) == sorted(trainable)
    assert all(gradient.norm() > 0 for gradient in gradients.values())
    assert sorted(weights) == sorted(trainable)
    assert not any(torch.equal(weights[name], network.get_parameter(name)) for name in trainable)
    targets = targets_of(learner)
    changed = targets.pseudo_labels[targets.labels == 0]
    for kind in (0, 1, 255):  # kept, taken over, and ignored as unsure
        assert (changed == kind).float().mean() > 0.05


def test_two_accumulated_micro_batches_give_the_gradient_of_the_batch(
    config: Config, whole: Iteration
) -> None:
    assert_equal_iterations(one_iteration(config, Worker(CPU), accumulate=2), whole)


def test_a_compiled_model_gives_the_same_gradient_and_keeps_the_names_of_its_weights(
    config: Config, name: str, whole: Iteration, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = []

    def capture(graph: Any, _: object) -> Any:  # a backend that needs no C++ compiler
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=capture))
    compiled = make_config(folder, name, "train.compile=true")
    assert_equal_iterations(one_iteration(compiled, Worker(CPU), accumulate=1), whole)
    assert captured
    learner = make_learner(config)
    names = list(learner.network.state_dict())
    assert list(wrap(learner, compiled, Worker(CPU)).state_dict()) == names
    assert list(learner.network.state_dict()) == names


def run_two_ranks(folder: Path, *arguments: Any) -> None:
    """Let two processes leave their iterations in the folder; arguments: as `run_rank` takes them from `model` on."""
    for rank in range(2):
        (folder / str(rank)).mkdir()
    other = start(run_rank, 1, 2, folder, *arguments)
    run_rank(0, 2, folder, *arguments)
    other.join()
    assert other.exitcode == 0


def joined(folder: Path, accumulate: int, number: int = 0) -> Iteration:
    """What two processes have left of a method, by its number, put together: their shares of the terms added up."""
    ranks: list[Iteration] = [
        torch.load(folder / f"{number}_{rank}_{accumulate}.pt", weights_only=True) for rank in range(2)
    ]
    for ours, theirs in zip(ranks[1][1:], ranks[0][1:], strict=True):
        assert all(torch.equal(ours[name], x) for name, x in theirs.items()), "the ranks differ"
    shares = [terms for terms, _, _ in ranks]
    return {name: shares[0][name] + shares[1][name] for name in shares[0]}, *ranks[0][1:]


@pytest.fixture(scope="module")
def two_ranks(folder: Path, name: str) -> Path:
    """The folder in which two processes have left their iterations."""
    run_two_ranks(folder, name)
    return folder


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_give_the_gradient_of_one_process(
    two_ranks: Path, whole: Iteration, accumulate: int
) -> None:
    assert_equal_iterations(joined(two_ranks, accumulate), whole)


def test_a_mean_over_the_means_of_the_halves_would_give_another_gradient(
    config: Config, whole: Iteration
) -> None:
    halves = []
    for batch in micro_batches(num_ranks=1, rank=0, accumulate=2):
        learner = make_learner(config)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        backward(learner, learner.network, [batch], scaler, config, Worker(CPU))
        parameters = learner.network.named_parameters()
        halves.append({name: p.grad / 2 for name, p in parameters if p.grad is not None})
    naive = {name: halves[0][name] + halves[1][name] for name in halves[0]}
    assert relative_difference(naive, whole[1]) > 0.1


def test_the_loss_scale_leaves_the_gradient_as_it_is_and_skips_an_update_that_overflows(
    config: Config, whole: Iteration
) -> None:
    learner = make_learner(config)
    network = learner.network
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    optimizer = build_optimizer(network, config.train, is_base_step=False)
    backward(learner, network, micro_batches(1, 0, 1), scaler, config, Worker(CPU))
    scaler.unscale_(optimizer)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert relative_difference(gradients, whole[1]) < 1e-4
    before = {name: p.clone() for name, p in network.named_parameters()}
    next(iter(network.model.backbone_parameters())).grad.fill_(torch.inf)  # type: ignore[union-attr]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(1))  # the scale comes to life with its first loss
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    restored = torch.amp.GradScaler("cpu")
    restored.load_state_dict(scaler.state_dict())
    assert restored.state_dict() == scaler.state_dict()
