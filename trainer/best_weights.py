"""The weights of the epoch that scores best, where a step does not simply end with the last."""

import math
from collections.abc import Callable
from typing import Any

from datasets.tasks import Step
from models import SegmentationModel
from trainer.network import Network
from trainer.session import Session
from trainer.validation import score_on_holdout, validate
from utils.metrics import mean_iou


class BestWeights:
    """The weights of the epoch with the highest score so far, the earliest of equal ones; kept on the CPU."""

    def __init__(self, score: Callable[[SegmentationModel], float | None]) -> None:
        self.score = score
        self.best = -math.inf
        self.epoch = -1
        self.state: dict[str, Any] = {}

    def consider(self, network: Network, epoch: int) -> float | None:
        """Score the model after an epoch, keep the network's weights if they are the best, and return the score."""
        score = self.score(network.model)
        if not self.state or (score is not None and score > self.best):
            self.best = -math.inf if score is None else score
            self.epoch = epoch
            # A copy even where the model is on the CPU already: its weights go on changing.
            self.state = {name: x.detach().to("cpu", copy=True) for name, x in network.state_dict().items()}
        return score

    def state_dict(self) -> dict[str, Any]:
        """The best so far, as plain values and tensors."""
        return {"best": self.best, "epoch": self.epoch, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.best, self.epoch, self.state = state["best"], state["epoch"], state["state"]


def best_weights(session: Session, step: Step) -> BestWeights | None:
    """Return what chooses among the epochs of a step; None where the last one counts."""
    plan, worker = session.plan, session.worker

    def holdout(model: SegmentationModel) -> float | None:
        score: float | None = score_on_holdout(plan, step, model, worker)["miou"]
        return score

    def validation(model: SegmentationModel) -> float | None:
        return mean_iou(validate(plan.evaluation, step, model, worker).iou, step.seen_classes)

    if plan.config.checkpoint == "last":
        return None
    return BestWeights(holdout if plan.config.checkpoint == "best_holdout" else validation)
