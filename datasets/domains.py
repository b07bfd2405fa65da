"""Domain-incremental tasks: every class is known from step 0 on, and steps bring images of new domains (cities)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from datasets.file_dataset import FileDataset
from datasets.selection import split_holdout
from datasets.tasks import Step, Task
from utils.errors import DataError

VAL_SHARE = 0.2
"""Share of every domain's images that is validated on."""
_NAME = re.compile(r"domains_([0-9]+)-([0-9]+)")


@dataclass(frozen=True)
class Domains:
    """The domains of a data set in the order in which they are learned, and that of an image by its id."""

    names: tuple[str, ...]
    of_image: Callable[[str], str]


def is_domain_task(name_or_lists: object) -> bool:
    """Whether the config's task is one of domains: 'domains_A-B'."""
    return isinstance(name_or_lists, str) and name_or_lists.startswith("domains")


def build_domain_task(name: str, dataset_classes: Sequence[str], domains: Domains | None) -> Task:
    """Cut the domains of a data set into steps: 'domains_A-B' is A of them first, then B a step.

    Step 0 learns all classes, later steps none. Raises ValueError for a malformed name, sizes that do not fit, or a
    data set without domains.
    """
    if domains is None:
        raise ValueError(
            f"task: '{name}' learns domains, which this data set does not have; take data.name cityscapes, or a task "
            "of classes such as '15-1'"
        )
    match, count = _NAME.fullmatch(name), len(domains.names)
    base, increment = (int(match[1]), int(match[2])) if match else (0, 0)
    if base == 0 or increment == 0:
        raise ValueError(
            f"task: '{name}' is no task of domains; expected 'domains_A-B', A domains first, then B a step, both at "
            "least 1, such as 'domains_11-5'"
        )
    if base > count:
        raise ValueError(f"task: '{name}' starts with {base} domains, but the data set has {count}")
    full_steps, remainder = divmod(count - base, increment)
    bounds = [0, *accumulate([base, *[increment] * full_steps, *([remainder] if remainder else [])])]
    groups = tuple(domains.names[a:b] for a, b in pairwise(bounds))
    num_classes = len(dataset_classes)
    steps = [Step(0, 0, num_classes), *(Step(i, num_classes, 0) for i in range(1, len(groups)))]
    class_ids = tuple(range(num_classes))
    return Task(f"{base}-{increment}", tuple(dataset_classes), class_ids, tuple(steps), groups)


def pool_splits(train: FileDataset, val: FileDataset, domains: Domains) -> tuple[FileDataset, FileDataset]:
    """Return training and validation images out of both splits, such that every domain has some of both.

    A fifth of a domain's images is validated on, chosen by ids as `val_fraction` chooses. Raises DataError for an image
    of no known domain, and for splits that mean other things by the pixels of their masks.
    """
    samples = train.samples | val.samples
    if train.coding != val.coding:
        raise DataError(
            f"{train.name}: the masks of both splits must be of one kind for a task of domains, which pools them; use "
            "labelIds in both"
        )
    unknown = sorted({domains.of_image(i) for i in samples} - set(domains.names))
    if unknown:
        raise DataError(
            f"{train.name}: {', '.join(unknown[:5])} {'is' if len(unknown) == 1 else 'are'} none of the domains "
            f"{', '.join(domains.names)}; remove their images"
        )
    held: set[str] = set()
    for name in domains.names:
        held |= set(split_holdout([i for i in samples if domains.of_image(i) == name], VAL_SHARE)[1])
    kept = ({i: s for i, s in samples.items() if (i in held) is wanted} for wanted in (False, True))
    return tuple(  # type: ignore[return-value]
        replace(split, samples=own, is_part=True) for split, own in zip((train, val), kept, strict=True)
    )


def images_of_steps(image_ids: Sequence[str], task: Task, domains: Domains) -> list[list[str]]:
    """Return the images of every step's domains, in the given order."""
    return [[i for i in image_ids if domains.of_image(i) in group] for group in task.domains]
