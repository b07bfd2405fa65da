"""RCIL (CVPR 2022, arXiv 2203.05402): two branches of which one remembers, and pooled cube distillation."""

import math
from typing import ClassVar

from pydantic import Field

from losses.local_pod import join_new_to_background
from losses.pooled_cube import pooled_cube
from methods.base import Output, Targets, Term
from methods.mib import MiB


class RCIL(MiB):
    """MiB's losses, and the old model's stages, features and logits are kept, pooled over space and over channels.

    The other half of the paper is a network: `model.compensation` (`models/compensation.py`) gives convolutions a
    second branch. Ours: new classes start as in MiB; the released code does so on Cityscapes only.
    """

    class Options(MiB.Options):
        output_weight: float = Field(100.0, ge=0)
        """Factor of the output distillation, a mean over pixels and old classes."""
        cube_weight: float = Field(0.01, ge=0)
        """Factor of the pooled cube distillation (ADE20K: 5e-6), scaled by √(classes / new classes)."""
        last_cube_weight: float = Field(0.0005, ge=0)
        """The same for the last map of each list (ADE20K: 5e-7): logits over space, features over channels."""

    options: Options
    needs_stages = "activated"
    defaults: ClassVar = {"model": {"compensation": True}, "train": {"freeze_bn": False}}

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return MiB's terms and the pooled cube distillation, a mean over images."""
        options, num_classes = self.options, self.num_old + self.num_new
        joined = join_new_to_background(output.grid_logits, self.num_old)
        news = [*output.stages, output.features, joined]
        olds = [*old.stages, old.features, old.grid_logits]
        spatial, channel, _ = zip(*map(pooled_cube, news, olds), strict=True)
        total = output.features.new_zeros((), dtype=spatial[0].dtype)
        for parts in (spatial, channel[:-1]):  # the channels of the logits are classes
            weights = [options.cube_weight] * (len(parts) - 1) + [options.last_cube_weight]
            total = total + sum(w * part for w, part in zip(weights, parts, strict=True)) / len(parts)
        # A step of new domains has no new class.
        scale = math.sqrt(num_classes / (self.num_new or num_classes))
        return {**super().terms(output, old, targets), "pooled_cube": Term(total, "images", weight=scale)}
