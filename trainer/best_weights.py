"""The weights of the epoch that scores best, where a step does not simply end with the last."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from datasets.tasks import Step
from models import SegmentationModel
from trainer.fusion import Fusion
from trainer.iteration import Learner
from trainer.session import Session
from trainer.validation import score_on_holdout, validate
from utils.metrics import mean_iou

Score = Callable[[SegmentationModel], float | None]
"""What tells how good a model is; None where it cannot."""


class BestWeights:
    """The weights of the epoch with the highest score so far, the earliest of equal ones; kept on the CPU.

    The method's state of that epoch goes with them. best: that score; while no epoch has one (None), the last counts.
    """

    def __init__(self, score: Score) -> None:
        self.score = score
        self.best: float | None = None
        self.epoch = -1
        self.network: dict[str, Tensor] = {}
        self.method_state: dict[str, Tensor] = {}

    def consider(self, learner: Learner, epoch: int) -> float | None:
        """Score the model after an epoch, keep its weights if they are the best, and return the score."""
        score = self.score(learner.model)
        if self.best is None or (score is not None and score > self.best):
            self.best = score
            self.epoch = epoch
            self.network = _copy(learner.network.state_dict())
            self.method_state = _copy(learner.method.state)
        return score

    def restore(self, learner: Learner) -> None:
        """Put the best weights into the network, and the state that goes with them into the method."""
        learner.network.load_state_dict(self.network)
        device = learner.model.pixel_mean.device
        learner.method.state = {name: x.to(device) for name, x in self.method_state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the best so far, as plain values and tensors."""
        names = ("best", "epoch", "network", "method_state")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the best so far by what `state_dict` returned."""
        self.best, self.epoch = state["best"], state["epoch"]
        self.network, self.method_state = state["network"], state["method_state"]


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU, of tensors that are there already, too: those go on changing."""
    return {name: x.detach().to("cpu", copy=True) for name, x in tensors.items()}


def best_weights(session: Session, step: Step, fusion: Fusion | None) -> BestWeights | None:
    """Return what chooses among the epochs of a step; None where the last one counts.

    fusion: what the step's weights are fused with at its end; its epochs are scored as if they were the last.
    """
    plan, worker = session.plan, session.worker

    def as_last(model: SegmentationModel) -> SegmentationModel:
        return model if fusion is None else fusion.fused_copy(model)

    def holdout(model: SegmentationModel) -> float | None:
        score: float | None = score_on_holdout(plan, step, as_last(model), worker)["miou"]
        return score

    def validation(classes: Sequence[int], model: SegmentationModel) -> float | None:
        return mean_iou(validate(plan.evaluation, step, as_last(model), worker).iou, classes)

    scores: dict[str, Score] = {
        "best_holdout": holdout,
        "best_validation": partial(validation, step.seen_classes),
        "best_validation_new": partial(validation, step.new_classes),
    }
    score = scores.get(plan.config.checkpoint)
    return None if score is None else BestWeights(score)
