"""DFT* (arXiv 2508.04267): the network and old rows are frozen, and rows of classes to come exist from the start."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from losses.pieces import Logits
from losses.reduction import at_least_float32
from methods.base import Method, Output, Targets, Term, refuse_without_rows
from models import SegmentationModel
from utils.config.section import NamedSection
from utils.upsampling import upsampled_like


class DFTBase(Method):
    """The base step: cross-entropy over the classes of all steps, in which rows of classes to come are negatives.

    These rows are a part beside the network, whose own rows are those of the classes seen so far: it predicts no other.
    Ours: the mean runs over labelled pixels.
    """

    class Options(NamedSection):
        preallocate: bool = Field(True)
        """Let the rows of all classes to come take part in the softmax from the base step on."""

    options: Options

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse models whose classes are not rows of a 1x1 classifier, and fusing rows that a step moves into them."""
        problems = refuse_without_rows(config)
        if config.train.fuse_old_weights and config.method.preallocate:
            problems.append(
                f"train.fuse_old_weights: fuses weight by weight, and method {config.method.name} moves its rows to "
                "come into the network with every step; set it or method.preallocate to false"
            )
        return problems

    def parts(self, channels: int) -> dict[str, nn.Module]:
        """Return the rows of the classes that the model does not have yet: of the step, until they are added, and of
        later ones."""
        count = self.num_future + (self.num_new if self.num_old else 0)
        return (
            {"future": nn.Conv2d(channels, count, kernel_size=1)}
            if self.options.preallocate and count
            else {}
        )

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the cross-entropy on the labels as given, over the classes of all steps."""
        weights = targets.own.get("weights")
        return {"cross_entropy": self.cross_entropy(self.logits(output), targets.pseudo_labels, weights)}

    def logits(self, output: Output) -> Logits:
        """Return the logits of all classes at image size, those to come last."""
        if "future" not in self.modules:
            return output.pixel_logits
        future = self.modules["future"](at_least_float32(output.features))
        grid_logits = torch.cat([output.grid_logits, future.to(output.grid_logits.dtype)], dim=1)
        return upsampled_like(grid_logits, output.pixel_logits)


DFTBase.base_step = DFTBase


class DFT(DFTBase):
    """Direct fine-tuning of the new rows and of those to come; nothing else moves, so nothing shifts (FixBC-P)."""

    base_step = DFTBase
    needs_new_classes = True
    defaults: ClassVar = {"train": {"freeze_extractor": True}}

    @torch.no_grad()
    def add_classes(self, model: SegmentationModel, num_new: int) -> None:
        """Move the step's rows into the model, as the steps before have left them."""
        model.grow(num_new)
        if "future" not in self.modules:
            return
        future = self.modules["future"]
        *_, newest = model.get_submodule("classifier.heads").children()
        for name in ("weight", "bias"):
            rows = future.get_parameter(name)
            newest.get_parameter(name).copy_(rows[:num_new])
            setattr(future, name, nn.Parameter(rows[num_new:].clone()))
        if not len(future.get_parameter("bias")):
            del self.modules["future"]
