"""SSUL (arXiv 2106.11562): everything but the new classes' heads stays frozen; one sigmoid a class."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from losses.fused import sigmoid_pseudo_labels_in_pieces
from losses.pieces import Logits
from methods.base import Looks, Output, SigmoidMethod, Targets, Term
from models import SegmentationModel
from utils.config.section import NamedSection
from utils.labels import SALIENT
from utils.upsampling import upsampled_like


class SSULBase(SigmoidMethod):
    """The base step: binary cross-entropy of all classes, of background and of the unknown class."""

    class Options(NamedSection):
        unknown: Literal["salient", "background", "none"] = "salient"
        """What the unknown class is: background that is salient (`data.saliency`; without it there is no such class),
        all background (ADE20K), or nothing."""

    options: Options
    takes_heads = True

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse an unknown class that the model lacks or that nothing shows."""
        method, saliency = config.method, getattr(config.data, "saliency", None)
        has_unknown = getattr(config.model, "classifier", "rows") == "heads+unknown"
        shown = method.unknown == "background" or (method.unknown == "salient" and saliency is not None)
        problems = []
        if shown and not has_unknown:
            problems.append(
                f"model.classifier: method.unknown {method.unknown} needs heads+unknown (model.name deeplabv3); set "
                "it, leave it out, or set method.unknown to none"
            )
        if has_unknown and not shown:
            problems.append(
                f"model.classifier: heads+unknown has nothing to learn from with method.unknown {method.unknown} and "
                "without data.saliency; give one, or take heads"
            )
        if saliency is not None and method.unknown != "salient":
            problems.append(
                f"data.saliency: method.unknown {method.unknown} uses none; set it to salient, or leave this out"
            )
        return problems

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Say where there is no unknown class."""
        if self.options.unknown == "salient" and not getattr(model, "has_unknown", False):
            looks.say("SSUL without its unknown class: data.saliency names no folder of saliency masks")

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return labels in which the unknown class, if there is one, follows all others."""
        return self.make_targets(self.without_saliency(labels), self.with_unknown(labels))

    def without_saliency(self, labels: Tensor) -> Tensor:
        """Return labels (B,H,W) as other terms know them."""
        return labels.masked_fill(labels == SALIENT, 0)

    def with_unknown(self, labels: Tensor) -> Tensor:
        """Return labels (B,H,W) in which the unknown class is K, the number of all classes."""
        unknown = 0 if self.options.unknown == "background" else SALIENT
        return labels.masked_fill(labels == unknown, self.num_old + self.num_new)

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the cross-entropy of all sigmoids."""
        weights = targets.own.get("weights")
        return {"cross_entropy": self.cross_entropy(all_logits(output), targets.pseudo_labels, weights)}


SSULBase.base_step = SSULBase


class SSUL(SSULBase):
    """Binary cross-entropy on pseudo-labels, over features that stay as the base step left them.

    As in the released code, a step trains a head of its own, the unknown class's head, and the background's at a small
    learning rate; new heads start as copies of the unknown class's.
    """

    class Options(SSULBase.Options):
        threshold: float = Field(0.7, ge=0, le=1)
        """Score from which an old class is taken over as pseudo-label."""

    options: Options
    base_step = SSULBase
    needs_old_model = True
    defaults: ClassVar = {"train": {"freeze_extractor": True, "lr_background_factor": 1e-4}}

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `defaults`, and of DeepLabV3 the heads, one of the unknown class where something shows it."""
        method, model, data = (values.get(name) or {} for name in ("method", "model", "data"))
        if not isinstance(model, Mapping) or model.get("name", "deeplabv3") != "deeplabv3":
            return cls.defaults
        kind = cls.Options.model_fields["unknown"].default
        unknown = method.get("unknown", kind) if isinstance(method, Mapping) else kind
        saliency = data.get("saliency") if isinstance(data, Mapping) else None
        shown = unknown == "background" or (unknown == "salient" and saliency is not None)
        return {**cls.defaults, "model": {"classifier": "heads+unknown" if shown else "heads"}}

    def add_classes(self, model: SegmentationModel, num_new: int) -> None:
        """Let new classes start as the unknown class, where there is one."""
        model.grow(num_new, start="unknown" if getattr(model, "has_unknown", False) else "random")

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return the old model's likeliest class where the label is background or unknown and that class is sure
        (eq. 2).
        """
        known = self.without_saliency(labels)
        threshold = self.options.threshold
        found = sigmoid_pseudo_labels_in_pieces(known, all_logits(old), threshold, self.num_old)
        return self.make_targets(known, torch.where(found == known, self.with_unknown(labels), found))


def all_logits(output: Output) -> Logits:
    """Return the logits (B,K,H,W) of all sigmoids, or (B,K+1,H,W) with that of the unknown class last."""
    if output.grid_logits.shape[1] == output.pixel_logits.shape[1]:
        return output.pixel_logits
    return upsampled_like(output.grid_logits, output.pixel_logits)
