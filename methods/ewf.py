"""Endpoints Weight Fusion (EWF, CVPR 2023): MiB, whose steps end between their old and their new weights."""

from typing import ClassVar

from methods.mib import MiB


class EWF(MiB):
    """MiB with both switches of the trainer that any method can have: `trainer/fusion.py` has the formula.

    Ours: BatchNorm is frozen in incremental steps unless `train.freeze_bn` is false; the authors' recipe trains it.

    The authors' released code fuses PLOP's steps, too: `method: plop` with the same two switches.
    """

    needs_new_classes = True
    defaults: ClassVar = {"train": {"fuse_old_weights": True, "freeze_old_classes": True}}
