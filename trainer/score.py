"""A step's scores on the validation split and on held-out images, and the weights chosen by them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datasets.incremental import ValidationDataset, evaluation_table, training_table
from datasets.tasks import Step
from datasets.transforms import EvaluateTransform
from datasets.unreadable import Unreadable
from models import SegmentationModel
from trainer.plan import Plan
from trainer.validation import evaluate
from utils.distributed import Worker
from utils.metrics import iou_per_class, mean_iou


def validation_dataset(plan: Plan, step: Step, worker: Worker) -> ValidationDataset:
    """Return this rank's share of the validation images, labelled for a step."""
    config = plan.config
    table = evaluation_table(plan.task, step, config.evaluate.future, plan.val.background_is_void)
    transform = EvaluateTransform(config.train.crop_size, config.evaluate.mode)
    return ValidationDataset(plan.val, plan.val.ids[worker.rank :: worker.world_size], table, transform)


class Validation(NamedTuple):
    """Pixel counts (K,K) of all validation images, IoU (K,) of every class, and the images that could not be read."""

    confusion: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    unreadable: Unreadable


def validate(plan: Plan, step: Step, model: SegmentationModel, worker: Worker) -> Validation:
    """Evaluate a model on all validation images; raises DataError as `data.on_error` says."""
    dataset, data = validation_dataset(plan, step, worker), plan.config.data
    where = f"evaluation of step {step.index}"
    unreadable = Unreadable(data.on_error, data.max_skipped, len(plan.val.ids), where)
    confusion = evaluate(model, dataset, step.num_classes, plan.config, worker, unreadable, where)
    return Validation(confusion, iou_per_class(confusion, dataset.shows_background), unreadable)


def score_on_holdout(plan: Plan, step: Step, model: SegmentationModel, worker: Worker) -> dict[str, Any]:
    """Return the mIoU of the step's images held out of its training: `classes` (names averaged), `miou`, `num_images`.

    Their labels are those that the step trains on, so only classes labelled there count: the new ones (background
    among them in the base step only, later it hides old classes), with data.train_on `seen` every seen one.
    """
    config, holdout = plan.config, plan.holdout_ids[step.index]
    table = training_table(plan.task, step, config.data.train_on)
    transform = EvaluateTransform(config.train.crop_size, config.evaluate.mode)
    dataset = ValidationDataset(plan.train, holdout[worker.rank :: worker.world_size], table, transform)
    where, data = f"held-out images of step {step.index}", config.data
    unreadable = Unreadable(data.on_error, data.max_skipped, len(holdout), where)
    confusion = evaluate(model, dataset, step.num_classes, config, worker, unreadable, where)
    iou = iou_per_class(confusion, dataset.shows_background)
    labelled = step.seen_classes if config.data.train_on == "seen" else step.new_classes
    averaged = [c for c in labelled if not np.isnan(iou[c])]
    return {
        "classes": [plan.task.class_names[c] for c in averaged],
        "miou": mean_iou(iou, averaged),
        "num_images": len(holdout) - len(unreadable.problems),
    }


class BestWeights:
    """The weights of the epoch with the highest score so far, the earliest of equal ones; kept on the CPU."""

    def __init__(self, score: Callable[[SegmentationModel], float | None]) -> None:
        self.score = score
        self.best = -math.inf
        self.epoch = -1
        self.state: dict[str, Any] = {}

    def consider(self, model: SegmentationModel, epoch: int) -> float | None:
        """Score the model after an epoch, keep its weights if they are the best, and return the score."""
        score = self.score(model)
        if not self.state or (score is not None and score > self.best):
            self.best = -math.inf if score is None else score
            self.epoch = epoch
            # A copy even where the model is on the CPU already: its weights go on changing.
            self.state = {name: x.detach().to("cpu", copy=True) for name, x in model.state_dict().items()}
        return score

    def state_dict(self) -> dict[str, Any]:
        """The best so far, as plain values and tensors."""
        return {"best": self.best, "epoch": self.epoch, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.best, self.epoch, self.state = state["best"], state["epoch"], state["state"]


def best_weights(plan: Plan, step: Step, worker: Worker) -> BestWeights | None:
    """Return what chooses among the epochs of a step; None where the last one counts."""

    def holdout(model: SegmentationModel) -> float | None:
        score: float | None = score_on_holdout(plan, step, model, worker)["miou"]
        return score

    def validation(model: SegmentationModel) -> float | None:
        return mean_iou(validate(plan, step, model, worker).iou, step.seen_classes)

    if plan.config.checkpoint == "last":
        return None
    return BestWeights(holdout if plan.config.checkpoint == "best_holdout" else validation)
