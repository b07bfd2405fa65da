"""The validation of a step: the confusion matrix over all validation images, and scores on held-out ones."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from datasets.incremental import ValidationDataset, training_table
from datasets.tasks import IGNORE_INDEX, Step
from datasets.unreadable import Unreadable
from models import SegmentationModel
from trainer.config import Config
from trainer.data import evaluate_transform
from trainer.inference import predict_all
from trainer.plan import Evaluation, Plan
from utils.console import progress_bar
from utils.distributed import Worker
from utils.loading import ReadAhead
from utils.metrics import iou_of_labelled, iou_per_class, leave_out_unlabelled, mean_iou


class Validation(NamedTuple):
    """Pixel counts (K,K) of all validation images as far as classes are labelled, IoU (K,) of every class, nan where
    there is none, and the images that could not be read."""

    confusion: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    unreadable: Unreadable


def validate(evaluation: Evaluation, step: Step, model: SegmentationModel, worker: Worker) -> Validation:
    """Evaluate a model on all validation images; raises DataError as `data.on_error` says."""
    config, where = evaluation.config, f"evaluation of step {step.index}"
    unreadable = Unreadable(config.data.on_error, config.data.max_skipped, len(evaluation.image_ids), where)
    confusion = np.zeros((step.num_classes, step.num_classes), np.int64)
    shows_background = False
    for part in evaluation.parts:
        dataset = part.dataset(part.val.ids[worker.rank :: worker.world_size], step)
        counts = evaluate(model, dataset, step.num_classes, config, worker, unreadable, where)
        confusion += leave_out_unlabelled(counts, part.unlabelled.intersection(step.seen_classes))
        shows_background |= dataset.shows_background
    iou = iou_per_class(confusion, shows_background)
    unlabelled = evaluation.without_label.intersection(step.seen_classes)
    return Validation(confusion, iou_of_labelled(iou, unlabelled), unreadable)


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
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
    confusion = confusion.to(worker.device)
    shown = bool(progress) and worker.is_main
    read = progress_bar(progress, len(dataset), unit="image", over=loader, shown=shown)
    sound = unreadable.watch((image, label, [problem]) for image, label, problem in read)
    samples = ((image, label.shape, label) for image, label in sound)
    for label, prediction in predict_all(model, samples, config, worker.device):
        confusion.update(prediction[None], label.to(worker.device, non_blocking=True).long()[None])
    unreadable.agree(worker.gather)
    matrix: npt.NDArray[np.int64] = confusion.compute().cpu().numpy().astype(np.int64)
    return matrix
