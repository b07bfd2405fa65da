"""How many images show every class, and how many of their pixels."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from datasets.rare import Counts
from datasets.tasks import Task
from utils.labels import IGNORE_INDEX
from utils.report.tables import printable

RARE = 0.01
"""Share of the pixels below which a class is told to be rare."""


class ClassShare(NamedTuple):
    """A class: images that show it and its share of their split's labelled pixels, None where nothing is labelled.

    Training images are those of the step that learns the class, validation images all.
    """

    step: int
    name: str
    train_images: int
    train_share: float | None
    val_images: int
    val_share: float | None


def class_shares(
    task: Task,
    selected: Sequence[Collection[str]],
    train: Mapping[str, Counts],
    val: Mapping[str, Counts],
) -> list[ClassShare]:
    """Return the shares of all classes of a task, background among those of step 0.

    selected: ids of the training images of every step; train, val: pixels (256,) by data set id, by image.
    """
    shares = []
    for step, ids in zip(task.steps, selected, strict=True):
        own = [train[image_id] for image_id in ids if image_id in train]
        for c in step.new_classes:
            in_train, in_val = (_count(group, task.class_ids[c]) for group in (own, [*val.values()]))
            shares.append(ClassShare(step.index, task.class_names[c], *in_train, *in_val))
    return shares


def _count(pixels: Sequence[Counts], class_id: int) -> tuple[int, float | None]:
    """Return in how many images a class is, and its share of the labelled pixels of all."""
    counts = np.array(pixels).reshape(-1, 256)
    labelled = np.delete(counts, IGNORE_INDEX, axis=1).sum()
    share = float(counts[:, class_id].sum() / labelled) if labelled else None
    return int((counts[:, class_id] > 0).sum()), share


def find_rare(shares: Sequence[ClassShare]) -> list[str]:
    """Return a line for every class that training images show in less than a hundredth of their pixels."""
    return [
        f"class '{share.name}' has {share.train_share:.2%} of the pixels of step {share.step}'s training images; so "
        "rare a class may stay at IoU 0: docs/training.md, 'Rare classes', says what helps"
        for share in shares
        if share.train_share is not None and 0 < share.train_share < RARE
    ]


def format_shares(shares: Sequence[ClassShare]) -> str:
    """Return the shares as a table for the terminal."""
    rows = [("step", "class", "train images", "pixels", "val images", "pixels")]
    rows += [
        (
            str(share.step),
            printable(share.name),
            str(share.train_images),
            percent(share.train_share),
            str(share.val_images),
            percent(share.val_share),
        )
        for share in shares
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def percent(share: float | None) -> str:
    """Return a share in percent, with as many digits as it takes to see that it is there."""
    if share is None:
        return "–"
    return f"{100 * share:.2f} %" if share == 0 or share >= 1e-4 else "< 0.01 %"


def as_json(
    task: Task, shares: Sequence[ClassShare], selected: Sequence[Collection[str]]
) -> list[dict[str, Any]]:
    """Return the shares of every step, as plain values."""
    return [
        {
            "step": step.index,
            "num_train_images": len(ids),
            "classes": [
                {name: value for name, value in share._asdict().items() if name != "step"}
                for share in shares
                if share.step == step.index
            ],
        }
        for step, ids in zip(task.steps, selected, strict=True)
    ]
