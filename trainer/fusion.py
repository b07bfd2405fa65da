"""Endpoints weight fusion (EWF, CVPR 2023): a step ends between the weights before it and those it has trained."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.tasks import Step
from models import SegmentationModel
from trainer.checkpoint import RERUN, checkpoint_path, load_checkpoint
from trainer.network import Network
from trainer.session import Session


def share_of_new(num_old: int, num_new: int) -> float:
    """Return α = √(K_new / K), the weight of what a step has trained; background counts in K."""
    return math.sqrt(num_new / (num_old + num_new))


@torch.no_grad()
def fuse_weights(old: Mapping[str, Tensor], new: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return θ° + share · (θ − θ°) for every floating-point entry of `old`, all other entries as `new` has them.

    Computed in float32 at least; an entry that has not moved stays the same to the bit. Raises KeyError where `new`
    lacks an entry of `old`.
    """
    fused = dict(new)
    for name, before in old.items():
        after = new[name]
        if after.is_floating_point():
            wide = torch.promote_types(after.dtype, torch.float32)
            start = before.to(after.device, wide)
            fused[name] = (start + share * (after.to(wide) - start)).to(after.dtype)
    return fused


@dataclass(frozen=True)
class Fusion:
    """What a step's weights are fused with at its end.

    before: the weights before the step, as the checkpoint has them: those of the `model` and of the method's `parts`.
    """

    before: Mapping[str, Mapping[str, Tensor]]
    share: float

    def fuse(self, network: Network) -> None:
        """Replace the trained weights by the fused ones; once a step."""
        for name, module in (("model", network.model), ("parts", network.parts)):
            module.load_state_dict(fuse_weights(self.before[name], module.state_dict(), self.share))

    def fused_copy(self, model: SegmentationModel) -> SegmentationModel:
        """Return what the step would end with if it ended now; `model` stays as it is."""
        fused = copy.deepcopy(model)
        fused.load_state_dict(fuse_weights(self.before["model"], model.state_dict(), self.share))
        return fused


def fusion_of(session: Session, step: Step, network: Network) -> Fusion | None:
    """Return what a step is fused with, None where `train.fuse_old_weights` is off and in the base step.

    Raises ValueError where the network no longer has a weight that it had before the step.
    """
    if step.index == 0 or not session.config.train.fuse_old_weights:
        return None
    before = load_checkpoint(checkpoint_path(session.run_dir, step.index - 1), remedy=RERUN)
    weights = {name: before[name] for name in ("model", "parts")}
    now = {"model": network.model.state_dict(), "parts": network.parts.state_dict()}
    gone = sorted(
        name
        for of, entries in weights.items()
        for name, x in entries.items()
        if name not in now[of] or now[of][name].shape != x.shape
    )
    if gone:
        raise ValueError(
            f"train.fuse_old_weights: step {step.index} of method {session.config.method.name} trains a network "
            f"without {gone[0]}, or with one of another shape, than the one before it has; set it to false"
        )
    return Fusion(weights, share_of_new(step.num_old, step.num_new))
