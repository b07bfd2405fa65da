"""Fine-tuning and joint training: what is lost without any method, and what could be had with all images."""

from typing import ClassVar

from methods.base import Method


class Finetune(Method):
    """Cross-entropy on the labels of the step, nothing else; new classes start at random."""

    needs_new_classes = False


class Joint(Method):
    """Step t trains on the images of all steps so far, with the labels of every class seen (not incremental)."""

    needs_new_classes = False
    defaults: ClassVar = {"data": {"train_on": "seen"}}
