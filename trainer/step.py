"""One incremental-learning step: its loop, from batches to trained weights."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from datasets.incremental import StepDataset, TrainSampler
from datasets.tasks import Step
from datasets.unreadable import Unreadable
from losses.binary_cross_entropy import SigmoidPseudoLabel
from losses.entropy_pseudo_label import EntropyPseudoLabel
from losses.objective import Objective
from losses.pseudo_label import SelectivePseudoLabel
from models import SegmentationModel
from trainer.config import BINARY, Config, PseudoLabelConfig, TrainConfig
from trainer.history import History, NonFiniteLossError
from trainer.inference import autocast
from trainer.optim import build_optimizer, build_schedule, freeze_batch_norm
from trainer.progress import MidStepSaves, Stateful
from trainer.score import BestWeights
from utils.distributed import Worker
from utils.logging import RunLog
from utils.signals import Interruption, leave_signals_to_parent


def build_objective(config: Config, step: Step, thresholds: Tensor | None = None) -> Objective:
    """Return the terms of a step: in the base step cross-entropy and what trains an auxiliary classifier beside it,
    what the config switches on later.

    thresholds: (K_old,) of pseudo-labels by entropy, as `trainer.thresholds` measures them; the least
    allowed where not given.
    """
    loss, pod = config.loss, config.loss.local_pod
    auxiliary_weight = loss.auxiliary_weight if config.model.auxiliary_classifier else None
    if step.index == 0:
        is_binary = loss.cross_entropy in BINARY
        return Objective(cross_entropy="bce" if is_binary else "plain", auxiliary_weight=auxiliary_weight)
    return Objective(
        cross_entropy=loss.cross_entropy,
        pseudo_label=build_pseudo_label(loss.pseudo_label, step, thresholds),
        pseudo_label_weight=loss.pseudo_label.weight,
        adaptive_factor=loss.pseudo_label.adaptive_factor,
        feature_distillation_weight=loss.feature_distillation.weight
        if loss.feature_distillation.enabled
        else None,
        feature_distillation_kind=loss.feature_distillation.kind,
        output_distillation_weight=loss.output_distillation.weight
        if loss.output_distillation.enabled
        else None,
        output_distillation_kind=loss.output_distillation.kind,
        orthogonal_weight=loss.orthogonal.weight if loss.orthogonal.enabled else None,
        local_pod_weights=(pod.weight, pod.features_weight, pod.logits_weight) if pod.enabled else None,
        decomposed_distillation_weight=loss.decomposed_distillation.weight
        if loss.decomposed_distillation.enabled
        else None,
        auxiliary_weight=auxiliary_weight,
        num_new=step.num_new,
    )


def build_pseudo_label(
    config: PseudoLabelConfig, step: Step, thresholds: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what fills the background of a step's labels, if anything does."""
    if not config.enabled:
        return None
    if config.kind == "entropy":
        least = torch.full((step.num_old,), config.threshold)
        return EntropyPseudoLabel(least if thresholds is None else thresholds)
    if config.kind == "sigmoid":
        return SigmoidPseudoLabel(config.threshold)
    return SelectivePseudoLabel(config.threshold, ignore_unsure=config.kind == "selective")


def train_step(
    model: SegmentationModel,
    old_model: SegmentationModel | None,
    objective: Objective,
    dataset: StepDataset,
    sampler: TrainSampler,
    step: Step,
    config: Config,
    worker: Worker,
    log: RunLog,
    first_iteration: int,
    best: BestWeights | None,
    interruption: Interruption,
) -> float:
    """Train `model` in place on the step's images and return the seconds it took.

    old_model: the frozen model of the step before, None where no term of the objective looks at it.
    first_iteration: the run's iterations before this step, for the curves. best: looks at the model after every
    epoch and keeps the weights that score best; its time does not count. interruption: asked after every iteration
    whether to save and end.
    A step that was saved on its way goes on from there, and ends as if it had not stopped.
    Raises NonFiniteLossError naming iteration and term, DataError naming images that cannot be read,
    SaveError, SystemExit after an interruption.
    """
    train = config.train
    prepare_for_training(model, step, train)
    optimizer = build_optimizer(model, train, is_base_step=step.index == 0)
    schedule = build_schedule(optimizer, train.schedule, sampler.num_iterations)
    scaler = torch.amp.GradScaler(worker.device.type, enabled=train.amp == "fp16")
    if train.channels_last:
        for network in (model, old_model):
            if network is not None:
                network.to(memory_format=torch.channels_last)
    parallel_model = wrap_model(model, config, worker)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.data.num_workers,
        pin_memory=worker.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )
    data = config.data
    unreadable = Unreadable(data.on_error, data.max_skipped, len(dataset), f"training of step {step.index}")
    history = History(step.index, first_iteration, config, worker, log)
    parts: dict[str, Stateful] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "scaler": scaler,
    }
    parts |= {"history": history, "unreadable": unreadable}
    if best is not None:
        parts["best"] = best
    saves = MidStepSaves(config, step, parts, worker, log)
    num_done = sampler.num_skipped = saves.find()
    log.start_step(step.index, first_iteration + num_done)
    micro_batches = group(unreadable.watch(iter(loader)), train.accumulate)
    saves.restore()  # after the loader, which draws a number
    with log.progress(f"step {step.index}", sampler.num_iterations, num_done) as bar:
        for iteration in range(num_done, sampler.num_iterations):
            batches = [move(batch, worker.device, train.channels_last) for batch in next(micro_batches)]
            terms = backward(parallel_model, old_model, objective, batches, scaler, config, worker)
            if train.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), train.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            history.add(terms)
            epoch = iteration // sampler.iterations_per_epoch
            if (iteration + 1) % config.logging.every == 0 or iteration + 1 == sampler.num_iterations:
                history.flush(iteration, epoch, schedule.get_last_lr()[0], bar)
                unreadable.agree(worker)
            schedule.step()
            bar.update()
            if best is not None and (iteration + 1) % sampler.iterations_per_epoch == 0:
                look_since = time.monotonic()
                score = best.consider(model, epoch)
                log.metrics(step.index, first_iteration + iteration, {"score": score}, epoch=epoch)
                prepare_for_training(model, step, train)
                history.pause(time.monotonic() - look_since)
            saves.after_iteration(iteration + 1, interruption)
    check_weights(model, step)
    if unreadable.problems:
        log.info(unreadable.describe())
    return time.monotonic() - history.started


def prepare_for_training(model: SegmentationModel, step: Step, train: TrainConfig) -> None:
    """Put the model into training mode, what incremental steps keep frozen: BatchNorm, or all but new classes."""
    model.train()
    if step.index == 0:
        return
    if train.freeze_extractor:
        model.eval().requires_grad_(False)
        for parameter in model.newest_parameters():
            parameter.requires_grad_()
    elif train.freeze_bn:
        freeze_batch_norm(model)


def check_weights(model: nn.Module, step: Step) -> None:
    """Raise NonFiniteLossError where the last update, which no later loss has seen, broke the weights."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise NonFiniteLossError(
                f"step {step.index}, last iteration: the weights {name} are not finite; nothing of this step was "
                "saved. Lower the learning rate or set train.clip_grad_norm"
            )


def backward(
    model: nn.Module,
    old_model: SegmentationModel | None,
    objective: Objective,
    batches: list[tuple[Tensor, Tensor]],
    scaler: torch.amp.GradScaler,
    config: Config,
    worker: Worker,
) -> dict[str, Tensor]:
    """Leave the gradient of the global batch in the model; return this rank's share of every term.

    batches: this rank's micro-batches of images (B,3,H,W) and labels (B,H,W). The means of the objective run
    over all ranks and micro-batches, so their counts come first; old outputs wait for them.
    """
    old_outputs, targets = [], []
    for images, labels in batches:
        old = None
        if objective.needs_old_model:
            assert old_model is not None
            with torch.no_grad(), autocast(config.train.amp, worker.device):
                old = old_model(images, with_stages=objective.needs_stages)
        targets.append(objective.prepare(labels, old))
        # Full-size logits of all micro-batches would take the memory that accumulation saves.
        old_outputs.append(old if old is None or len(batches) == 1 else old._replace(logits=None))
    counts = worker.sum(torch.stack([target.counts for target in targets]).sum(dim=0))
    share = 1 / (worker.world_size * len(batches))
    totals: dict[str, Tensor] = {}
    for index, (images, labels) in enumerate(batches):
        is_last = index == len(batches) - 1
        # Gradients travel between ranks once an iteration, with the last micro-batch.
        waits = (
            model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else nullcontext()
        )
        with waits:
            with autocast(config.train.amp, worker.device):
                output = model(images, with_stages=objective.needs_stages)
            old = old_outputs[index]
            if old_model is not None and old is not None and old.logits is None:
                old = old._replace(logits=old_model.to_image_size(old.grid_logits, images.shape[2:]))
            terms = objective(output, old, labels, targets[index], counts, share)
            loss = torch.stack(list(terms.values())).sum()
            # DistributedDataParallel averages over ranks what has to be added up.
            scaler.scale(loss * worker.world_size).backward()
        for name, term in terms.items():
            totals[name] = totals.get(name, 0) + term.detach()
    return totals


def wrap_model(model: SegmentationModel, config: Config, worker: Worker) -> nn.Module:
    """Return the model as the loop calls it: gradient synchronisation, compilation."""
    if config.train.compile:
        # Before the wrapper, whose own hooks do not compile.
        model.compile()
    if worker.world_size == 1:
        return model
    devices = [worker.device] if worker.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def move(batch: tuple[Tensor, Tensor], device: torch.device, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Bring uint8 images and labels to the device; labels become int64 there."""
    images, labels = (x.to(device, non_blocking=True) for x in batch)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, labels.long()


def group(batches: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield lists of `size` consecutive batches."""
    batches = iter(batches)
    while chunk := list(itertools.islice(batches, size)):
        yield chunk
