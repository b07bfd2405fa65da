"""One update of a step: the gradient of a global batch, however it is cut into ranks and micro-batches."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from methods import Method, Output, Targets, means
from methods.base import stack_counts
from models import SegmentationModel, SegOutput
from trainer.config import Config
from trainer.inference import autocast
from trainer.network import Network
from trainer.rare import RareTerms
from utils.distributed import Worker


@dataclass(frozen=True)
class Learner:
    """What learns in a step: the method, the network that it trains, and the frozen model of the step before.

    old_model: None where the method does not look at it. rare: terms for rare classes, None without any.
    """

    method: Method
    network: Network
    old_model: SegmentationModel | None
    rare: RareTerms | None = None

    @property
    def model(self) -> SegmentationModel:
        """The network without the method's own modules."""
        return self.network.model


def backward(
    learner: Learner,
    wrapped: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    scaler: torch.amp.GradScaler,
    config: Config,
    worker: Worker,
) -> dict[str, Tensor]:
    """Leave the gradient of the global batch in the network; return this rank's share of every term.

    wrapped: the network as `wrap` returns it. batches: this rank's micro-batches of images (B,3,H,W) and labels
    (B,H,W). Means run over all ranks and micro-batches, so their counts come first; old outputs wait for them.
    """
    method, rare, amp = learner.method, learner.rare, config.train.amp
    old_outputs, targets = [], []
    for images, labels in batches:
        old = look(learner, images, amp)
        asked = method.targets(labels, cast(Output, old))
        targets.append(asked if rare is None else rare.ask(asked))
        # Logits at image size of all micro-batches would take the memory that accumulation saves.
        old_outputs.append(old if old is None or len(batches) == 1 else old._replace(pixel_logits=None))
    counts = add_up(targets, worker)
    totals: dict[str, Tensor] = {}
    for index, (images, _) in enumerate(batches):
        with gradients_travel(wrapped, with_last=index == len(batches) - 1):
            with autocast(amp, worker.device):
                output = wrapped(images, with_stages=method.needs_stages, full_size=False)
            output, old = at_image_size(learner.model, output, images), old_outputs[index]
            if old is not None and old.pixel_logits is None:
                assert learner.old_model is not None
                old = at_image_size(learner.old_model, old, images)
            asked = replace(targets[index], counts=counts)
            terms_of_batch = method.terms(cast(Output, output), cast(Output, old), asked)
            if rare is not None:
                terms_of_batch |= rare.terms(cast(Output, output), asked)
            terms = means(terms_of_batch, counts)
            loss = torch.stack(list(terms.values())).sum()
            # DistributedDataParallel averages over ranks what has to be added up.
            scaler.scale(loss * worker.world_size).backward()
        for name, term in terms.items():
            totals[name] = totals.get(name, 0) + term.detach()
    return totals


@torch.no_grad()
def look(learner: Learner, images: Tensor, amp: str) -> SegOutput | None:
    """Return what the old model says of images, None where the method does not ask it."""
    if learner.old_model is None:
        return None
    with autocast(amp, images.device):
        old = learner.old_model(images, with_stages=learner.method.needs_stages, full_size=False)
    return at_image_size(learner.old_model, old, images)


def at_image_size(model: SegmentationModel, output: SegOutput, images: Tensor) -> SegOutput:
    """Return an output of the grid with logits at image size, which are computed where a loss reads them."""
    return output._replace(pixel_logits=model.upsampled(output.grid_logits, images.shape[2:]))


def add_up(targets: list[Targets], worker: Worker) -> dict[str, Tensor]:
    """Return the counts of all micro-batches and ranks added up, float64 by name."""
    counts = targets[0].counts
    sums = worker.sum(stack_counts(targets)).split([count.numel() for count in counts.values()])
    return {name: x.view(counts[name].shape) for name, x in zip(counts, sums, strict=True)}


def gradients_travel(wrapped: nn.Module, with_last: bool) -> "nullcontext[None]":
    """Let gradients travel between ranks once an iteration, with the last micro-batch."""
    if isinstance(wrapped, DistributedDataParallel) and not with_last:
        return cast("nullcontext[None]", wrapped.no_sync())
    return nullcontext()


def wrap(learner: Learner, config: Config, worker: Worker) -> nn.Module:
    """Return the network as the loop calls it: gradient synchronisation, compilation."""
    if config.train.compile:
        # Before the wrapper, whose own hooks do not compile.
        compile_step(learner)
    if worker.world_size == 1:
        return learner.network
    devices = [worker.device] if worker.device.type == "cuda" else None
    wrapped = DistributedDataParallel(learner.network, device_ids=devices, gradient_as_bucket_view=True)
    # BatchNorm's statistics are not used while it trains; who looks at them fetches the main process's.
    wrapped.broadcast_buffers = False
    return wrapped


def compile_step(learner: Learner) -> None:
    """Let both models and the method's objective be compiled where they are first called.

    What was compiled before is forgotten: every step has another model, and after a few of them (Dynamo's
    recompile_limit) the rest of a run would not be compiled.
    """
    torch.compiler.reset()
    learner.network.model.compile()
    if learner.old_model is not None:
        learner.old_model.compile()
    learner.method.compile()
