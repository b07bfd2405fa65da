"""Exemplar memory: a few images of earlier steps that an incremental step sees again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from datasets.tasks import Task


def select_memories(
    image_classes: Mapping[str, Collection[int]],
    task: Task,
    image_ids: Sequence[Sequence[str]],
    *,
    size: int,
    strategy: str,
    seed: int,
) -> list[list[str]]:
    """Return the memory of every step: at most `size` ids out of the memory and the images of the step before.

    The base step has none. 'random' is the first ids in the order of the SHA-1 of 'SEED/ID', which does not depend on
    how images are listed; 'class_balanced' takes, as long as there is room, the next image in that order of the class
    that the memory shows least (ties: learning order), all classes seen before the step being known of an image.

    image_classes: image id -> data set ids of the classes that it shows; image_ids: the training images of every step.
    """
    contiguous = {dataset_id: c for c, dataset_id in enumerate(task.class_ids) if c > 0}
    memories: list[list[str]] = [[]]
    for step in task.steps[1:]:
        candidates = sorted(
            {*memories[-1], *image_ids[step.index - 1]},
            key=lambda image_id: hashlib.sha1(f"{seed}/{image_id}".encode()).digest(),
        )
        if strategy == "class_balanced":
            shown = {
                image_id: {contiguous[i] for i in image_classes[image_id] if i in contiguous}
                for image_id in candidates
            }
            memories.append(_balance(shown, range(1, step.num_old), size))
        else:
            memories.append(candidates[:size])
    return memories


def _balance(shown: Mapping[str, Collection[int]], classes: Sequence[int], size: int) -> list[str]:
    """Take `size` of the images in turn, each for the class that those taken show least."""
    # Iterators, so that what has been looked at once is not looked at again.
    waiting = {c: iter([image_id for image_id in shown if c in shown[image_id]]) for c in classes}
    counts: Counter[int] = Counter()
    taken: dict[str, None] = {}
    while len(taken) < size and waiting:
        scarcest = min(waiting, key=lambda c: (counts[c], c))
        chosen = next((image_id for image_id in waiting[scarcest] if image_id not in taken), None)
        if chosen is None:
            del waiting[scarcest]
            continue
        taken[chosen] = None
        counts.update(shown[chosen])
    return list(taken)
