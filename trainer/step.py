"""One incremental-learning step: its loop, from batches to trained weights."""

import itertools
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from datasets.incremental import StepDataset
from datasets.tasks import Step
from datasets.unreadable import Unreadable
from models import SegmentationModel
from trainer.best_weights import BestWeights
from trainer.config import Config
from trainer.history import History, NonFiniteLossError
from trainer.iteration import Learner, backward, wrap
from trainer.kernels import fastest_convolutions
from trainer.optim import build_optimizer, build_schedule, freeze_batch_norm
from trainer.progress import MethodState, MidStepSaves, Stateful
from trainer.sampling import TrainSampler
from trainer.sections import TrainConfig
from trainer.session import Session
from utils.distributed import Worker, seed_everything
from utils.loading import ReadAhead, collate_channels_last


def train_step(
    session: Session,
    step: Step,
    learner: Learner,
    dataset: StepDataset,
    saves: MidStepSaves,
    best: BestWeights | None,
) -> float:
    """Train the network in place on the step's images and return the seconds it took.

    saves: where the step stands; one that was saved on its way goes on from there, and ends as if it had not stopped.
    best: looks at the network after every epoch and keeps the weights that score best; its time does not count.
    Raises NonFiniteLossError naming iteration and term, DataError naming images that cannot be read,
    SaveError, SystemExit after an interruption.
    """
    config, worker, log = session.config, session.worker, session.log
    train, network = config.train, learner.network
    sampler = session.plan.sampler(step, worker)
    first_iteration = session.plan.first_iteration(step, worker)
    prepare_for_training(learner.model, step, train)
    optimizer = build_optimizer(network, train, is_base_step=step.index == 0)
    schedule = build_schedule(optimizer, train.schedule, sampler.num_iterations, train.warmup)
    scaler = torch.amp.GradScaler(worker.device.type, enabled=train.amp == "fp16")
    if train.channels_last:
        use_channels_last(network, learner.old_model)
    wrapped = wrap(learner, config, worker)
    if worker.rank:
        # Ranks drop different paths (stochastic depth). What they had to agree on has been drawn.
        seed_everything(config.seed, step.index, worker.rank)
    unreadable = Unreadable(
        config.data.on_error, config.data.max_skipped, len(dataset), f"training of step {step.index}"
    )
    history = History(step.index, first_iteration, config, worker, log)
    changing: dict[str, Stateful] = {
        "network": network,
        "method": MethodState(learner.method, worker.device),
        "optimizer": optimizer,
        "schedule": schedule,
        "scaler": scaler,
        "history": history,
        "unreadable": unreadable,
    }
    if best is not None:
        changing["best"] = best
    log.start_step(step.index, first_iteration + saves.num_done)
    micro_batches = group(
        unreadable.watch(load(dataset, sampler, saves.num_done, config, worker)), train.accumulate
    )
    later = session.plan.task.steps[step.index + 1 :]
    to_come = sum(session.plan.num_iterations(other, worker) for other in later)
    progress = log.progress(f"step {step.index}", sampler.num_iterations, saves.num_done, to_come)
    with fastest_convolutions(sizes_stay=True), progress as bar:
        for iteration in saves.resume(changing, sampler.num_iterations):
            batches = [move(batch, worker.device, train.channels_last) for batch in next(micro_batches)]
            terms = backward(learner, wrapped, batches, scaler, config, worker)
            if scaler.is_enabled():
                # Its update asks the GPU whether a gradient is infinite.
                worker.meet()
            update(network, optimizer, scaler, train.clip_grad_norm)
            history.add(terms)
            epoch = iteration // sampler.iterations_per_epoch
            if (iteration + 1) % config.logging.every == 0 or iteration + 1 == sampler.num_iterations:
                history.flush(iteration, epoch, schedule.get_last_lr()[0], bar)
                unreadable.agree(worker.gather)
            schedule.step()
            bar.update()
            if best is not None and (iteration + 1) % sampler.iterations_per_epoch == 0:
                look_since = time.monotonic()
                worker.take_from_main(network.buffers())
                score = best.consider(learner, epoch)
                log.metrics(step.index, first_iteration + iteration, {"score": score}, epoch=epoch)
                prepare_for_training(learner.model, step, train)
                history.pause(time.monotonic() - look_since)
            saves.after_iteration(iteration + 1, changing)
    worker.take_from_main(network.buffers())
    check_weights(network, step)
    if unreadable.problems:
        log.info(unreadable.describe())
    return time.monotonic() - history.started


def update(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_grad_norm: float | None,
) -> None:
    """Change the weights by their gradient, clipped to this norm (None: as it is), and clear the gradient."""
    if clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), clip_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def use_channels_last(*modules: nn.Module | None) -> None:
    """Give convolutions the memory format that is fast on GPUs."""
    for module in modules:
        if module is not None:
            module.to(memory_format=torch.channels_last)


def prepare_for_training(model: SegmentationModel, step: Step, train: TrainConfig) -> None:
    """Put the model into training mode; incremental steps freeze BatchNorm, dropout, old classes, or all but new ones.

    `train` says which. A method's own modules always train.
    """
    model.train()
    if step.index == 0:
        return
    if train.freeze_extractor:
        model.eval().requires_grad_(False)
    elif train.freeze_bn:
        freeze_batch_norm(model)
    if train.freeze_dropout:
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
    if train.freeze_old_classes:
        for parameter in model.classifier_parameters():
            parameter.requires_grad_(False)
    background = model.background_parameters() if train.lr_background_factor else []
    for parameter in (*model.newest_parameters(), *background):
        parameter.requires_grad_()


def check_weights(network: nn.Module, step: Step) -> None:
    """Raise NonFiniteLossError where the last update, which no later loss has seen, broke the weights."""
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise NonFiniteLossError(
                f"step {step.index}, last iteration: the weights {name} are not finite; nothing of this step was "
                "saved. Lower the learning rate or set train.clip_grad_norm"
            )


def load(
    dataset: StepDataset, sampler: TrainSampler, num_done: int, config: Config, worker: Worker
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Return this rank's micro-batches of images, labels and problems, from iteration `num_done` on."""
    sampler.num_skipped = num_done
    loader = ReadAhead(
        dataset,
        batch_sampler=sampler,
        num_workers=config.data.num_workers,
        pin_memory=worker.device.type == "cuda",
        collate_fn=collate_channels_last if config.train.channels_last else None,
    )
    return iter(loader)


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
