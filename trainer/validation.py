"""The validation of a step: the confusion matrix over all validation images, and scores on held-out ones."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.incremental import ValidationDataset, training_table
from datasets.tasks import Step
from datasets.unreadable import Unreadable
from models import SegmentationModel
from trainer.config import Config
from trainer.data import evaluate_transform
from trainer.inference import predict, predict_all
from trainer.kernels import fastest_convolutions
from trainer.plan import Evaluation, Plan
from utils.console import progress_bar
from utils.distributed import Worker
from utils.labels import IGNORE_INDEX
from utils.loading import ReadAhead
from utils.metrics import CONVENTIONS, iou_of_labelled, iou_per_class, leave_out_unlabelled, mean_iou


class Validation(NamedTuple):
    """Pixel counts (K,K) of all validation images as far as classes are labelled, IoU (K,) of every class, nan where
    there is none, the images that could not be read, and the IoUs as the conventions of papers have background count.
    """

    confusion: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    unreadable: Unreadable
    iou_of: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Counts:
    """Pixel counts (K,K), and whether background can occur in the labels."""

    confusion: npt.NDArray[np.int64]
    shows_background: bool

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.confusion + other.confusion, self.shows_background or other.shows_background)


def validate(evaluation: Evaluation, step: Step, model: SegmentationModel, worker: Worker) -> Validation:
    """Evaluate a model on all validation images; raises DataError as `data.on_error` says."""
    config, where = evaluation.config, f"evaluation of step {step.index}"
    unreadable = Unreadable(config.data.on_error, config.data.max_skipped, len(evaluation.image_ids), where)
    nothing = Counts(np.zeros((step.num_classes, step.num_classes), np.int64), False)
    scored, void, counted = nothing, nothing, nothing
    for part in evaluation.parts:
        where_void, where_counted = count_pixels(part, step, model, worker, unreadable, where)
        scored += where_void if part.voids_background else where_counted
        void += where_void if part.val.background_is_void else where_counted
        counted += where_counted
    unlabelled = evaluation.without_label.intersection(step.seen_classes)

    def iou(counts: Counts) -> npt.NDArray[np.float64]:
        return iou_of_labelled(iou_per_class(counts.confusion, counts.shows_background), unlabelled)

    of_conventions = {
        name: iou(void if convention.may_void else counted) for name, convention in CONVENTIONS.items()
    }
    return Validation(scored.confusion, iou(scored), unreadable, of_conventions)


def count_pixels(
    part: Evaluation, step: Step, model: SegmentationModel, worker: Worker, unreadable: Unreadable, where: str
) -> tuple[Counts, Counts]:
    """Return the pixels of all ranks, without those of the data set's id 0 and with them as background.

    Both are the same where nothing asks for the first.
    """
    known = step.num_classes
    # Classes that a task leaves out are background, too: a label of its own keeps id 0 apart from them.
    apart = part.voids_background or part.val.background_is_void
    dataset = part.dataset(
        part.val.ids[worker.rank :: worker.world_size], step, background=known if apart else 0
    )
    counts = evaluate(model, dataset, known + apart, part.config, worker, unreadable, where)
    void, counted = counts[:known, :known], counts[:known, :known].copy()
    counted[0] += counts[known:, :known].sum(axis=0)
    unlabelled = part.unlabelled.intersection(step.seen_classes)
    return (
        Counts(leave_out_unlabelled(void, unlabelled), dataset.shows_background),
        Counts(
            leave_out_unlabelled(counted, unlabelled), dataset.shows_background or 0 in part.val.label_ids
        ),
    )


def score_on_holdout(plan: Plan, step: Step, model: SegmentationModel, worker: Worker) -> dict[str, Any]:
    """Return the mIoU of the step's images held out of its training: `classes` (names averaged), `miou`, `num_images`.

    Their labels are those that the step trains on, so only classes labelled there count: the new ones (background
    among them in the base step only, later it hides old classes), with data.train_on `seen` every seen one.
    """
    config, holdout = plan.config, plan.holdout_ids[step.index]
    table = training_table(plan.task, step, config.data.train_on)
    ids = holdout[worker.rank :: worker.world_size]
    dataset = ValidationDataset(plan.train, ids, table, evaluate_transform(config))
    where, data = f"held-out images of step {step.index}", config.data
    unreadable = Unreadable(data.on_error, data.max_skipped, len(holdout), where)
    confusion = evaluate(model, dataset, step.num_classes, config, worker, unreadable, where)
    iou = iou_per_class(confusion, dataset.shows_background)
    labelled = plan.task.labelled_classes(step, config.data.train_on)
    averaged = [c for c in labelled if not np.isnan(iou[c])]
    return {
        "classes": [plan.task.class_names[c] for c in averaged],
        "miou": mean_iou(iou, averaged),
        "num_images": len(holdout) - len(unreadable.problems),
    }


def evaluate(
    model: SegmentationModel,
    dataset: ValidationDataset,
    num_classes: int,
    config: Config,
    worker: Worker,
    unreadable: Unreadable | None = None,
    progress: str = "",
) -> npt.NDArray[np.int64]:
    """Return the confusion matrix (K,K), rows ground truth, over the images of all ranks.

    dataset: this rank's share; no image belongs to two ranks. Of every `evaluate.batch_size` images, those of one
    shape share a forward pass. unreadable: takes the images that cannot be read, of all ranks; None ends with an error
    at any. progress: what the main process's progress bar says; '' shows none. Raises DataError.
    """
    model.eval()
    unreadable = unreadable or Unreadable("raise", 0.0, len(dataset), "evaluation")
    # Workers hand over images one by one: those of a batch may differ in size, and so may their labels.
    loader = ReadAhead(
        dataset,
        batch_size=None,
        num_workers=config.data.num_workers,
        pin_memory=worker.device.type == "cuda",
        # A loader draws a seed for its workers; a training that goes on afterwards must not notice.
        generator=torch.Generator(),
    )
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=worker.device)
    shown = bool(progress) and worker.is_main
    read = progress_bar(progress, len(dataset), unit="image", over=loader, shown=shown)
    sound = unreadable.watch((image, label, [problem]) for image, label, problem in read)
    samples = ((image, label.shape, label) for image, label in sound)
    with fastest_convolutions(sizes_stay=config.evaluate.mode == "center_crop"):
        for label, prediction in predict_all(model, samples, config, worker.device, predict):
            labels = label.to(worker.device, non_blocking=True).long()
            confusion += confusion_matrix(labels, prediction, num_classes)
    unreadable.agree(worker.gather)
    matrix: npt.NDArray[np.int64] = worker.sum(confusion).cpu().numpy()
    return matrix


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Return how many pixels of each class are predicted as each, (K,K) int64, rows being labels.

    labels: int64, 0..K-1 or 255, which is not counted; predictions: of the same shape, int64, 0..K-1.
    """
    num_cells = num_classes**2
    cells = torch.where(labels == IGNORE_INDEX, num_cells, labels * num_classes + predictions)
    # Without weights it counts in whole numbers: the same on a GPU, whatever the order.
    return torch.bincount(cells.flatten(), minlength=num_cells + 1)[:-1].view(num_classes, num_classes)
