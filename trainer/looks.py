"""The images of a step as the old model sees them, before the step trains."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from datasets.incremental import StepDataset, ValidationDataset
from datasets.tasks import Step
from datasets.unreadable import Unreadable
from methods import Output
from models import SegmentationModel
from trainer.inference import autocast
from trainer.session import Session
from trainer.step import group, move
from utils.console import progress_bar
from utils.loading import ReadAhead


class StepLooks:
    """A rank's share of a step's images as its first epoch shows them, with what the old model says of them.

    An image that cannot be read is replaced, as in training, which tells of it. Nothing trains on whole images: one of
    them ends the run or is left out, as `data.on_error` says.
    base: gives the same of the base step's images. whole: gives this rank's images of the step, or of the base step,
    with their labels.
    """

    def __init__(
        self,
        session: Session,
        step: Step,
        dataset: StepDataset,
        base: Callable[[], StepDataset],
        whole: Callable[[bool], Sequence[ValidationDataset]],
        old_model: SegmentationModel | None,
    ) -> None:
        self.session = session
        self.step = step
        self.base = base
        self.whole = whole
        self.dataset = dataset
        self.old_model = old_model
        self.config = session.config
        self.worker = session.worker

    @property
    def device(self) -> torch.device:
        """Where images, labels and outputs are."""
        return self.worker.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes up to the step's, background first."""
        return self.session.plan.task.class_names[: self.step.num_classes]

    @property
    def setting(self) -> str:
        """Which images serve a step: 'overlap', 'disjoint' or 'partitioned'."""
        return self.config.setting

    @property
    def iterations_per_epoch(self) -> int:
        """Updates in one pass over the step's images."""
        return self.session.plan.sampler(self.step, self.worker).iterations_per_epoch

    def sum(self, x: Tensor) -> Tensor:
        """Return x added up over all ranks."""
        self.worker.meet()
        return self.worker.sum(x)

    def say(self, text: str) -> None:
        """Tell the user, on the terminal and in the run's log."""
        self.session.log.info(f"step {self.step.index}: {text}")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Output]]:
        """Yield images (B,3,H,W), labels (B,H,W) int64 and the old model's output, without gradient."""
        return self.seen_by(None)

    def seen_by(
        self, model: SegmentationModel | None, of_base_step: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, Output]]:
        """Yield the same of any model, which is evaluated; None is the old one. of_base_step: the images of step 0."""
        model = self.old_model if model is None else model
        assert model is not None, "the method says that it needs no old model"
        was_training = [module for module in model.modules() if module.training]
        for images, labels in self._batches(self.base() if of_base_step else self.dataset):
            model.eval()
            with torch.no_grad(), autocast(self.config.train.amp, self.device):
                output = model(images)
            yield images, labels, cast(Output, output)
        for module in was_training:
            module.training = True

    def _batches(self, dataset: StepDataset) -> Iterator[tuple[Tensor, Tensor]]:
        train, worker = self.config.train, self.worker
        keys = [(0, index) for index in range(worker.rank, len(dataset), worker.world_size)]
        size = max(1, train.batch_size // (worker.world_size * train.accumulate))
        for images, labels, _ in self._load(
            dataset, [keys[start : start + size] for start in range(0, len(keys), size)]
        ):
            yield move((images, labels), self.device, channels_last=False)

    def _load(self, dataset: StepDataset, batch_sampler: Iterable[list[tuple[int, int]]]) -> "ReadAhead[Any]":
        """Return the images, labels and problems of these batches of (epoch, index)."""
        return ReadAhead(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=self.config.data.num_workers,
            pin_memory=self.device.type == "cuda",
            # A loader draws a seed for its workers; the training that follows must not notice.
            generator=torch.Generator(),
        )

    def batches(self, num_epochs: int) -> Iterator[tuple[float, list[tuple[Tensor, Tensor]]]]:
        """Yield this rank's images and labels as training for so many epochs would see them, a batch a time.

        A batch is a list of micro-batches, behind the share (0..1) of all batches that came before it.
        """
        sampler = self.session.plan.sampler(self.step, self.worker, num_epochs)
        micro_batches = ((images, labels) for images, labels, _ in self._load(self.dataset, sampler))
        batches = group(micro_batches, self.config.train.accumulate)
        shown, index = self.worker.is_main, self.step.index
        bar = progress_bar(
            f"step {index}: pre-tuning", sampler.num_iterations, "it", over=batches, shown=shown
        )
        for done, batch in enumerate(bar):
            yield done / sampler.num_iterations, [move(x, self.device, False) for x in batch]

    def whole_images(self, of_base_step: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (1,3,H,W) and labels (1,H',W') int64 of this step or of the base step, whole and as they are.

        All ranks go to the end together: they then agree on what could not be read. Raises DataError.
        """
        data, step = self.config.data, 0 if of_base_step else self.step.index
        num_images = len(self.session.plan.image_ids[step])
        unreadable = Unreadable(data.on_error, data.max_skipped, num_images, f"images of step {step}")
        for dataset in filter(len, self.whole(of_base_step)):
            loader = ReadAhead(
                dataset,
                batch_size=None,
                num_workers=self.config.data.num_workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),
            )
            what = "images of the base step" if of_base_step else "images"
            shown = self.worker.is_main
            bar = progress_bar(
                f"step {self.step.index}: {what}", len(dataset), "image", over=loader, shown=shown
            )
            for image, label, problem in bar:
                unreadable.meet([problem])
                if not problem:
                    yield move((image[None], label[None]), self.device, channels_last=False)
        unreadable.agree(self.worker.gather)
        if unreadable.problems:
            self.session.log.info(unreadable.describe())
