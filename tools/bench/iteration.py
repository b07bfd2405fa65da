"""One iteration of training on a random batch, and its floor: the network passes that any implementation needs."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from methods import Output, method_of_step
from models import SegmentationModel
from tools.bench.inputs import random_labels
from tools.bench.measure import medians, peak_mib
from tools.bench.setup import CPU, Setup
from trainer.checkpoint import new_model
from trainer.config import Config
from trainer.inference import autocast
from trainer.iteration import Learner, backward, wrap
from trainer.kernels import fastest_convolutions
from trainer.network import Network, make_parts
from trainer.optim import build_optimizer, freeze_batch_norm
from trainer.step import move, update, use_channels_last
from utils.distributed import Worker


class OneBatch:
    """The looks of a step whose only images are one batch, with what the old model says of them."""

    def __init__(
        self, images: Tensor, labels: Tensor, config: Config, worker: Worker, old_model: SegmentationModel
    ) -> None:
        self.images = images
        self.labels = labels
        self.config = config
        self.device = worker.device
        self.sum = worker.sum
        self.old_model = old_model
        self.class_names = tuple(map(str, range(256)))
        self.setting = config.setting
        self.iterations_per_epoch = 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Output]]:
        return self.seen_by(None)

    def seen_by(
        self, model: SegmentationModel | None, of_base_step: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, Output]]:
        with torch.no_grad(), autocast(self.config.train.amp, self.device):
            yield self.images, self.labels, cast(Output, (model or self.old_model)(self.images))

    def batches(self, num_epochs: int) -> Iterator[tuple[float, list[tuple[Tensor, Tensor]]]]:
        yield 0.0, [(self.images, self.labels)]

    def whole_images(self, of_base_step: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(1), self.labels.split(1), strict=True)

    def say(self, text: str) -> None:
        """Tell nobody: what is measured is told in rows."""


class Iteration:
    """One iteration of an incremental step on one random batch, and the passes that are its floor.

    num_classes: classes of each step, background counted in the first.
    """

    def __init__(self, config: Config, num_classes: Sequence[int], worker: Worker) -> None:
        train, device = config.train, worker.device
        torch.manual_seed(0)
        self.config, self.worker = config, worker
        num_old = sum(num_classes[:-1])
        old_model = new_model(config, list(num_classes[:-1])).to(device).eval().requires_grad_(False)
        model = new_model(config, list(num_classes)).to(device).train()
        if train.freeze_bn:
            freeze_batch_norm(model)
        method = method_of_step(config.method, num_old, num_classes[-1])
        if not method.trains:
            raise ValueError(
                f"method.name: {config.method.name} trains no network, so it has no iteration to measure"
            )
        method.modules = make_parts(method, config).to(device)
        network = Network(model, method.modules)
        if train.channels_last:
            use_channels_last(network, old_model)
        self.old_model = old_model
        self.learner = Learner(method, network, old_model if method.needs_old_model else None)
        self.optimizer = build_optimizer(network, train, is_base_step=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.amp == "fp16")
        self.wrapped = wrap(self.learner, config, worker)
        shape = train.batch_size, train.crop_size, train.crop_size
        images = torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)
        labels = random_labels(shape, num_old, num_classes[-1], CPU).byte()
        self.batch = move((images, labels), device, train.channels_last)
        method.model = model
        method.begin_step(model, OneBatch(*self.batch, config, worker, old_model))
        self.gradient = torch.randn(1, device=device)

    def run(self) -> None:
        """Both models, all terms, backward, update."""
        backward(self.learner, self.wrapped, [self.batch], self.scaler, self.config, self.worker)
        self._update()

    def student(self) -> None:
        """Forward, a backward pass of any gradient, update."""
        with autocast(self.config.train.amp, self.worker.device):
            logits = self.wrapped(self.batch[0]).logits
        logits.backward(self.gradient.to(logits.dtype).expand_as(logits))
        self._update()

    def old(self) -> None:
        """The old model's look, which it also has where the method does not ask for it."""
        with torch.inference_mode(), autocast(self.config.train.amp, self.worker.device):
            self.old_model(self.batch[0])

    def floor(self) -> None:
        """The passes of both networks."""
        self.student()
        self.old()

    def _update(self) -> None:
        update(self.learner.network, self.optimizer, self.scaler, clip_grad_norm=None)


@fastest_convolutions(sizes_stay=True)
def time_iteration(setup: Setup, config: Config, num_classes: Sequence[int]) -> tuple[float, float | None]:
    """Median seconds of an iteration, and its peak memory in MiB."""
    iteration = Iteration(config, num_classes, setup.worker)
    seconds = medians({"ours": iteration.run}, setup.repetitions(7), setup.device)["ours"]
    return seconds, peak_mib(iteration.run, setup.device)


def describe_model(config: Config) -> str:
    return f"{config.model.name} {config.model.backbone}"


def describe_precision(config: Config) -> str:
    """Say in what numbers an iteration computes, and whether it is compiled."""
    precision = {"off": "float32"}.get(config.train.amp, config.train.amp)
    return f"{precision}, compiled" if config.train.compile else precision
