"""methods/pre_tuning.py: NeST's stages by hand and against the released code, and steps that begin with them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.unbiased import unbiased_cross_entropy
from methods.base import Looks, Method
from methods.mib import MiB
from methods.nest import NeST
from methods.pre_tuning import PreTuned, Transformation, importance_of, importance_sums, tune
from models import DeepLabV3, SegmentationModel
from tests.support.golden import load_method_golden
from tests.support.training import SEGMENTER, outcome, tiny, train
from tests.trainer.test_resume import Killed, killed_before
from trainer.checkpoint import new_model

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
Batches = list[list[tuple[Tensor, Tensor]]]


class FakeLooks:
    """Images and labels of one rank of `barrier.parties`, which add up by way of `shared`."""

    device = torch.device("cpu")

    def __init__(self, model: SegmentationModel, batches: Batches, barrier: threading.Barrier | None = None):
        self.model, self.of_epochs, self.barrier = model, batches, barrier
        self.shared: dict[int, Tensor] = {}
        self.rank = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Any]]:
        for images, labels in (pair for batch in self.of_epochs for pair in batch):
            with torch.no_grad():
                yield images, labels, self.model(images)

    def batches(self, num_epochs: int) -> Iterator[tuple[float, list[tuple[Tensor, Tensor]]]]:
        for done, batch in enumerate(self.of_epochs * num_epochs):
            yield done / (len(self.of_epochs) * num_epochs), batch

    def sum(self, x: Tensor) -> Tensor:
        if self.barrier is None:
            return x
        self.shared[self.rank] = x
        self.barrier.wait()
        total = torch.stack([self.shared[rank] for rank in range(self.barrier.parties)]).sum(dim=0)
        self.barrier.wait()
        return total


def golden_heads(golden: dict[str, Tensor], kind: str = "") -> tuple[Tensor, Tensor]:
    """Rows and biases of the two old heads, and of the new one after the hand-over."""
    heads = range(2 if not kind else 3)
    weight, bias = ([golden[f"{kind}cls.{i}.{name}"] for i in heads] for name in ("weight", "bias"))
    return torch.cat(weight), torch.cat(bias)


def test_importance_is_that_of_the_released_code() -> None:
    golden = load_method_golden("NeST")
    rows, biases = golden_heads(golden)
    logits = F.conv2d(golden["features"], rows[:, :, None, None], biases)
    logits = F.interpolate(logits, (128, 128), mode="bilinear")
    parts = [
        importance_sums(
            golden["features"][i : i + 1], golden["labels"][i : i + 1], logits[i : i + 1], rows, 2
        )
        for i in range(3)
    ]
    sums, counts = (torch.stack(values).sum(dim=0) for values in zip(*parts, strict=True))
    found = importance_of(sums, counts)
    torch.testing.assert_close(found.float(), golden["importance_M"], **CLOSE)
    start = Transformation.start(found.float(), biases)
    torch.testing.assert_close(start.projection, golden["projection_P"], **CLOSE)


def golden_transformation(golden: dict[str, Tensor]) -> Transformation:
    start = Transformation.start(golden["importance_M"], torch.zeros(4))
    start.biases = golden["new_bias_start"].clone()
    return start


def test_tuning_and_hand_over_are_those_of_the_released_code() -> None:
    golden = load_method_golden("NeST")
    rows, biases = golden_heads(golden)
    start, features, labels = golden_transformation(golden), golden["features"], golden["pretune.labels16"]

    def loss(_: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = start.classifier(rows, biases)
        grid_logits = F.conv2d(features, weight[:, :, None, None], bias)
        logits = F.interpolate(grid_logits, labels.shape[1:], mode="bilinear")
        total, _ = unbiased_cross_entropy(logits, labels, 4, 255)
        return total, torch.tensor(labels.numel())  # the released mean is over all pixels

    parameters = start.parameters()
    total, number = loss(features, labels)
    torch.testing.assert_close(total / number, golden["pretune.loss_mean_over_all_pixels"], **CLOSE)
    names = ("M", "P", "bias", "M_bg", "P_bg")
    for name, gradient in zip(names, torch.autograd.grad(total / number, parameters), strict=True):
        torch.testing.assert_close(gradient, golden[f"pretune.grad.{name}"].view_as(gradient), **CLOSE)
    steady = type("Steady", (FakeLooks,), {"batches": lambda self, n: ((0.0, b) for b in self.of_epochs * n)})
    looks = steady(cast(SegmentationModel, None), [[(features, labels)]])
    tune(parameters, loss, cast(Looks, looks), num_epochs=5, lr=0.1)
    for name, parameter in zip(names, parameters, strict=True):
        torch.testing.assert_close(parameter.detach(), golden[f"tuned.{name}"].view_as(parameter), **CLOSE)
    for ours, theirs in zip(
        start.hand_over(rows, biases, align=True), golden_heads(golden, "final."), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_importance_and_the_start_of_a_row_by_hand() -> None:
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    features, probabilities = torch.zeros(1, 2, 128, 128), torch.full((1, 2, 128, 128), 0.5)
    labels = torch.zeros(1, 128, 128, dtype=torch.int64)
    for x, (f, p) in enumerate([((1.0, -2.0), (0.75, 0.25)), ((2.0, 1.0), (0.4, 0.6))]):
        features[0, :, 0, x], probabilities[0, :, 0, x] = torch.tensor(f), torch.tensor(p)
        labels[0, 0, x] = 2
    importance = importance_of(*importance_sums(features, labels, probabilities.log(), rows, 1))
    torch.testing.assert_close(importance, torch.tensor([[[0.575, 0.2], [0, 0.125]]]).double())
    start = Transformation.start(importance.float(), torch.tensor([0.3, 0.1]))
    torch.testing.assert_close(start.projection, torch.tensor([[0.657010, 0.342990]]))
    torch.testing.assert_close(start.rows(rows)[1], torch.tensor([[0.377781, 0.088528]]))
    assert start.biases.tolist() == [pytest.approx(0.3)]
    handed, _ = start.hand_over(rows, torch.zeros(2), align=True)
    torch.testing.assert_close(handed[2], torch.tensor([1.376913, 0.322663]))
    torch.testing.assert_close(start.hand_over(rows, torch.zeros(2), align=False)[0][2:], start.rows(rows)[1])


def test_the_background_keeps_its_norm_and_new_biases_take_that_of_the_old_ones_by_hand() -> None:
    start = Transformation.start(torch.ones(2, 3, 2), torch.zeros(3))
    start.background, start.scale = torch.tensor([2.0, 0.0]), torch.tensor(3.0)
    start.biases = torch.tensor([1.0, 0.0])
    rows = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
    assert start.rows(rows)[0].tolist() == [[18, 0]]
    weight, bias = start.hand_over(rows, torch.tensor([3.0, 0.0, 4.0]), align=True)
    assert weight[:3].tolist() == [[5, 0], [0, 1], [1, 0]]
    assert bias.tolist() == [3, 0, 4, 5, 0]
    weight, bias = start.hand_over(rows, torch.tensor([3.0, 0.0, 4.0]), align=False)
    assert weight[:3].tolist() == [[18, 0], [0, 1], [1, 0]], "as it was tuned"
    assert bias.tolist() == [3, 0, 4, 1, 0]


def test_a_class_without_a_pixel_starts_as_a_mean_of_the_old_rows() -> None:
    found = importance_of(torch.zeros(1, 4, 2), torch.zeros(1))
    assert torch.equal(found, torch.full((1, 4, 2), 0.25))


def deeplab() -> DeepLabV3:
    torch.manual_seed(0)
    options = DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=6)
    model = DeepLabV3([3], options, 32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of the one batch that it sees
        model.train()(make_batch()[0])
        for head in model.classifier.parameters():
            head.mul_(4)
    return model.eval()


def make_batch() -> tuple[Tensor, Tensor]:
    """Images and labels; the first half has next to nothing but 255."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 4, 4, 3])[torch.randint(0, 4, (8, 32, 32), generator=generator)]
    labels[:4, 2:] = 255
    return images, labels


def grown() -> DeepLabV3:
    """The model of the step, its classes added."""
    model = deeplab()
    model.grow(2, start="background")
    return model


def pre_tune(kind: str, model: DeepLabV3, looks: FakeLooks) -> DeepLabV3:
    """Let a step begin with the model; return it."""
    method = MiB(
        MiB.Options.model_validate({"pre_tuning": kind, "pre_tuning_epochs": 3, "pre_tuning_lr": 0.1}), 3, 2
    )
    method.begin_step(model, cast(Looks, looks))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    return model


@pytest.mark.parametrize("kind", ["transformed", "direct"])
def test_two_micro_batches_and_two_ranks_tune_to_the_rows_of_one_batch(kind: str) -> None:
    images, labels = make_batch()
    halves = list(zip(images.split(4), labels.split(4), strict=True))
    old = deeplab()
    whole = pre_tune(kind, grown(), FakeLooks(old, [[(images, labels)]]))
    cut = pre_tune(kind, grown(), FakeLooks(old, [halves]))
    ranks = [FakeLooks(old, [[half]], threading.Barrier(2)) for half in halves]
    ranks[1].barrier, ranks[1].shared, ranks[1].rank = ranks[0].barrier, ranks[0].shared, 1
    models = [grown(), grown()]  # not in the threads, which share their random numbers
    other = threading.Thread(target=pre_tune, args=(kind, models[1], ranks[1]))
    other.start()
    pre_tune(kind, models[0], ranks[0])
    other.join()
    expected = whole.state_dict()
    for model in (cut, *models):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    changed = {name for name, x in deeplab().state_dict().items() if not torch.equal(x, expected[name])}
    assert changed == ({"classifier.heads.0.weight"} if kind == "transformed" else set())
    start, tuned = old.classifier.class_tokens()[0], whole.classifier.class_tokens()
    assert (tuned[3:] - start).norm(dim=1).min() > 0.01
    if kind == "transformed":
        torch.testing.assert_close(tuned[0].norm(), start.norm())
        torch.testing.assert_close(tuned[3:].norm(dim=1).mean(), tuned[:3].norm(dim=1).mean())


def test_direct_tuning_lowers_the_loss_of_the_step_from_the_backgrounds_row_on() -> None:
    images, labels = make_batch()
    labels[4:] = 4
    start, tuned = grown(), pre_tune("direct", grown(), FakeLooks(deeplab(), [[(images, labels)]]))
    before, after = (unbiased_cross_entropy(m(images).logits, labels, 3, 255)[0] for m in (start, tuned))
    assert after < 0.9 * before


@pytest.mark.parametrize("name", ["mbs", "plop"])
def test_a_run_whose_steps_begin_with_tuning_draws_what_it_drew_without(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    begin_step = PreTuned.begin_step

    def watched(self: PreTuned, *arguments: Any) -> None:
        states.append(torch.get_rng_state())
        begin_step(self, *arguments)
        states.append(torch.get_rng_state())

    monkeypatch.setattr(PreTuned, "begin_step", watched)
    kind = "direct" if name == "mbs" else "transformed"
    fields = ["setting=disjoint", "memory.size=4"] if name == "plop" else []
    train(
        tiny(
            tmp_path,
            name,
            f"method={name}",
            f"method.pre_tuning={kind}",
            "method.pre_tuning_epochs=1",
            *fields,
        )
    )
    assert len(states) == 2
    assert torch.equal(*states)


NEST = ("method=nest", "method.pre_tuning_epochs=2", "save_every=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that nothing happened to."""
    config = tiny(tmp_path_factory.mktemp("whole"), "run", *NEST)
    train(config)
    return outcome(config.run_dir)


@pytest.mark.parametrize("where", ["tuning", "step"])
def test_a_run_killed_while_tuning_or_training_ends_bit_for_bit(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    killed = tiny(tmp_path, "run", *NEST)
    steps = []

    def count(*arguments: Any, **options: Any) -> Any:
        steps.append(0)
        if where == "tuning" and len(steps) == 3:
            raise Killed
        return unbiased_cross_entropy(*arguments, **options)

    monkeypatch.setattr("methods.pre_tuning.unbiased_cross_entropy", count)
    if where == "tuning":
        with pytest.raises(Killed):
            train(killed)
    else:
        with killed_before(4, monkeypatch):
            train(killed)
    done = len(steps)
    train(killed)
    assert (len(steps) == done) is (where == "step"), "a step that goes on does not tune again"
    assert outcome(killed.run_dir) == whole


def test_a_segmenter_is_tuned_directly_and_its_tokens_are_not_transformed(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"method\.pre_tuning: transformed is about the rows .* use direct or off"
    ):
        tiny(tmp_path, "refused", "method=nest", *SEGMENTER)
    config = tiny(tmp_path, "direct", "method=nest", "method.pre_tuning=direct", *SEGMENTER)
    model = new_model(config, [3])
    method: Method = NeST(config.method, 3, 2)
    method.add_classes(model, 2)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    method.begin_step(model, cast(Looks, FakeLooks(model, [[make_batch()]])))
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {f"classifier.{name}.1" for name in ("tokens", "scales", "shifts")}
