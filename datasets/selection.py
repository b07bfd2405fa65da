"""Image selection: which images serve a step, under the overlap, disjoint and partitioned settings."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

from datasets.tasks import Step, Task

SETTINGS = ("overlap", "disjoint", "partitioned")


def select_images(
    image_classes: Mapping[str, Collection[int]], task: Task, step: int | Step, setting: str
) -> list[str]:
    """Ids of the images that serve a step, in the order of `image_classes`.

    Args:
        image_classes: image id -> data set ids of the classes that it shows; 0, 255 and classes outside the
            task are ignored.
        step: the step, or its index in the task.
        setting: 'overlap' takes every image that shows a class of the step; 'disjoint' those of them that show
            no class of a later step; 'partitioned' gives each image to one step only (after Kwak et al.,
            arXiv 2405.09858).

    Raises:
        ValueError: unknown setting, or a step that the task does not have.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting: found {setting!r}; allowed are {', '.join(SETTINGS)}")
    if isinstance(step, int):
        if not 0 <= step < len(task.steps):
            raise ValueError(f"step: found {step}; task {task.name} has steps 0 to {len(task.steps) - 1}")
        step = task.steps[step]
    foreground = set(step.new_classes) - {0}
    contiguous = {dataset_id: c for c, dataset_id in enumerate(task.class_ids) if c > 0}
    shown = {
        image_id: {contiguous[i] for i in ids if i in contiguous} for image_id, ids in image_classes.items()
    }
    if setting == "partitioned":
        owner = _assign_owners(shown, num_classes=len(task.class_ids))
        return [image_id for image_id in shown if owner.get(image_id) in foreground]
    selected = [image_id for image_id, classes in shown.items() if classes & foreground]
    if setting == "disjoint":
        selected = [image_id for image_id in selected if max(shown[image_id]) < step.num_classes]
    return selected


def split_holdout(image_ids: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Cut a step's images into those it trains on and those held out, both in the given order.

    The held-out ones are round(fraction × images), at least one where the fraction is above 0, and depend on the
    ids alone: the first in the order of the SHA-1 of 'holdout/ID'. An image that serves several steps is therefore
    mostly held out in all or in none of them.
    """
    if fraction == 0:
        return list(image_ids), []
    by_hash = sorted(image_ids, key=lambda image_id: hashlib.sha1(f"holdout/{image_id}".encode()).digest())
    held_out = set(by_hash[: max(1, round(fraction * len(image_ids)))])
    return [i for i in image_ids if i not in held_out], [i for i in image_ids if i in held_out]


def _assign_owners(shown: Mapping[str, Collection[int]], num_classes: int) -> dict[str, int]:
    """Image id -> the one contiguous class that owns it; images that show no class are left out."""
    num_images = [0] * num_classes
    owner: dict[str, int] = {}
    # SHA-1 order is arbitrary but fixed: the partition does not depend on how the images are listed.
    for image_id in sorted(shown, key=lambda image_id: hashlib.sha1(image_id.encode()).digest()):
        if shown[image_id]:
            chosen = min(shown[image_id], key=lambda c: (num_images[c], c))
            owner[image_id] = chosen
            num_images[chosen] += 1
    return owner
