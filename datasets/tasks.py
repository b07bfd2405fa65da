"""Tasks: which classes are learned at which step, by arithmetic ('15-1') or from explicit class lists."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from utils.labels import IGNORE_INDEX

_TASK_FORMS = (
    'expected "A-B" (A classes first, then B a step, e.g. "15-1"), "offline", or one list of class names a step. '
    'YAML reads 15_1 as the number 151: write "15-1", in quotes'
)


@dataclass(frozen=True)
class Step:
    """One step of a task. Class ids are contiguous in learning order; 0 is background.

    `num_old` and `num_new` count background: VOC 15-1 has 0/16 at step 0 and 16/1 at step 1.
    """

    index: int
    num_old: int
    num_new: int

    @property
    def old_classes(self) -> tuple[int, ...]:
        """Ids learned before this step, background included (none at step 0)."""
        return tuple(range(self.num_old))

    @property
    def new_classes(self) -> tuple[int, ...]:
        """Ids learned at this step; at step 0 background is one of them."""
        return tuple(range(self.num_old, self.num_classes))

    @property
    def seen_classes(self) -> tuple[int, ...]:
        """Ids known after this step, background included."""
        return tuple(range(self.num_classes))

    @property
    def num_classes(self) -> int:
        """How many classes are known after this step, background included."""
        return self.num_old + self.num_new


@dataclass(frozen=True)
class Task:
    """The classes of a data set in the order in which they are learned, cut into steps.

    `class_names[c]` and `class_ids[c]` are the name and the data set id of contiguous id c; entry 0 is
    background. `domains` are those of every step where steps bring domains instead of classes: step 0 then knows
    every class, and all are labelled in every step.
    """

    name: str
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    steps: tuple[Step, ...]
    domains: tuple[tuple[str, ...], ...] = ()

    def num_future(self, step: Step) -> int:
        """Return how many classes later steps bring."""
        return len(self.class_names) - step.num_classes

    def labelled_classes(self, step: Step, train_on: str = "step") -> tuple[int, ...]:
        """Ids that are labelled in a step's images: its own, with train_on='seen' or domains all seen ones."""
        return step.seen_classes if train_on == "seen" or self.domains else step.new_classes

    def new_names(self, step: Step) -> tuple[str, ...]:
        """What the step brings, for people: its classes, or its domains."""
        return self.domains[step.index] if self.domains else self.new_class_names(step)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is unusual about the task: a last step that is shorter than the others of its name."""
        if self.domains:
            return ()
        base, _, increment = self.name.partition("-")
        last = self.steps[-1]
        if last.index == 0 or "-" in increment or not increment or last.num_new == int(increment):
            return ()
        return (
            f"task: '{self.name}' leaves a shorter last step: {last.num_new} classes instead of {increment} "
            f"({len(self.class_names) - 1} besides background, {base} of them in step 0)",
        )

    def remap_table(self) -> npt.NDArray[np.uint8]:
        """Table (256,) uint8 from data set id to contiguous id; outside the task 0, and 255 stays 255."""
        table = np.zeros(256, dtype=np.uint8)
        table[list(self.class_ids)] = np.arange(len(self.class_ids), dtype=np.uint8)
        table[IGNORE_INDEX] = IGNORE_INDEX
        return table

    def new_class_names(self, step: int | Step) -> tuple[str, ...]:
        """Names of the classes learned at `step` (step 0: background first)."""
        step = self.steps[step] if isinstance(step, int) else step
        return tuple(self.class_names[c] for c in step.new_classes)


def build_task(
    name_or_lists: str | Sequence[Sequence[str]],
    dataset_classes: Sequence[str],
    class_order: Sequence[int] | None = None,
) -> Task:
    """Cut the classes of a data set into steps.

    Args:
        name_or_lists: 'A-B' (A foreground classes first, then B a step, a remainder makes a smaller last
            step), 'offline' (all classes in step 0), or one list of class names a step; lists may name classes
            in any order and leave some out, which are background everywhere.
        dataset_classes: the data set's class names, index = data set id, background at 0.
        class_order: data set ids in learning order, 0 first, each exactly once. Only beside a named task.

    Raises:
        ValueError: a malformed name, sizes that do not fit, or a wrong class or class order.
    """
    if isinstance(name_or_lists, str):
        class_ids = _check_class_order(class_order, dataset_classes)
        sizes = _parse_name(name_or_lists, num_foreground=len(dataset_classes) - 1)
        name = name_or_lists
    elif isinstance(name_or_lists, Sequence):
        if class_order is not None:
            raise ValueError(
                "class_order: explicit class lists already fix the order; give either the lists, or a named "
                "task such as '15-1' with class_order"
            )
        class_ids, sizes = _parse_lists(name_or_lists, dataset_classes)
        name = "-".join(map(str, sizes))
    else:
        raise ValueError(
            f"task: found {name_or_lists!r} of type {type(name_or_lists).__name__}; {_TASK_FORMS}"
        )
    # The first step learns background as well.
    bounds = [0, *accumulate([sizes[0] + 1, *sizes[1:]])]
    steps = tuple(Step(i, bounds[i], bounds[i + 1] - bounds[i]) for i in range(len(sizes)))
    return Task(name, tuple(dataset_classes[i] for i in class_ids), class_ids, steps)


def _parse_name(name: str, num_foreground: int) -> list[int]:
    """Sizes of the steps, background not counted."""
    if name == "offline":
        return [num_foreground]
    match = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", name)
    if match is None:
        raise ValueError(f"task: {name[:60]!r} is not a task name; {_TASK_FORMS}")
    base, increment = int(match[1]), int(match[2])
    if base == 0 or increment == 0:
        raise ValueError(f"task: {name!r} has a step of 0 classes; both numbers must be at least 1")
    if base > num_foreground:
        raise ValueError(
            f"task: {name!r} starts with {base} classes, but the data set has {num_foreground} "
            "besides background"
        )
    full_steps, remainder = divmod(num_foreground - base, increment)
    return [base, *[increment] * full_steps, *([remainder] if remainder else [])]


def _check_class_order(class_order: Sequence[int] | None, dataset_classes: Sequence[str]) -> tuple[int, ...]:
    if class_order is None:
        return tuple(range(len(dataset_classes)))
    order = tuple(class_order)
    last = len(dataset_classes) - 1
    rule = f"expected every id from 0 to {last} exactly once, 0 (background) first"
    if any(isinstance(i, bool) or not isinstance(i, int) for i in order):
        raise ValueError(f"class_order: found {list(order)}; {rule}")
    if order[:1] != (0,):
        raise ValueError(f"class_order: starts with {list(order[:1])}; {rule}")
    problems = {
        "unknown": sorted(set(order) - set(range(last + 1))),
        "missing": sorted(set(range(last + 1)) - set(order)),
        "repeated": sorted(i for i, count in Counter(order).items() if count > 1),
    }
    if any(problems.values()):
        found = ", ".join(
            f"{what} {ids[:10]}{' …' if len(ids) > 10 else ''}" for what, ids in problems.items() if ids
        )
        raise ValueError(f"class_order: {found}; {rule}")
    return order


def _parse_lists(
    lists: Sequence[Sequence[str]], dataset_classes: Sequence[str]
) -> tuple[tuple[int, ...], list[int]]:
    """Data set ids in learning order, and the sizes of the steps, background not counted."""
    if not lists:
        raise ValueError("task: the list of steps is empty; expected one list of class names a step")
    step_of: dict[str, int] = {}
    problems: list[str] = []
    for index, names in enumerate(lists):
        if isinstance(names, str) or not isinstance(names, Sequence):
            problems.append(
                f"task: step {index} is {names!r}; expected one list of class names a step, "
                "e.g. [[cat, dog], [person]]"
            )
            continue
        if not names:
            problems.append(f"task: step {index} is empty; every step needs at least one class")
        for name in names:
            problem = _describe_class_name(name, index, dataset_classes)
            if problem is None and name in step_of:
                problem = (
                    f"task: class {name!r} is listed twice, in step {step_of[name]} and in step {index}; "
                    "list every class once"
                )
            if problem is not None:
                problems.append(problem)
            else:
                step_of[name] = index
    if problems:
        raise ValueError("\n".join(problems))
    id_of = {name: i for i, name in enumerate(dataset_classes)}
    return (0, *(id_of[name] for name in step_of)), [len(names) for names in lists]


def _describe_class_name(name: object, step: int, dataset_classes: Sequence[str]) -> str | None:
    """What is wrong with a name in the lists of a task, if anything."""
    background, *foreground = dataset_classes
    if name == background:
        return (
            f"task: step {step} lists {background!r}, which is part of every task; "
            "list foreground classes only"
        )
    if name not in foreground:
        close = difflib.get_close_matches(str(name), foreground, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the data set has {', '.join(foreground)}"
        return f"task: step {step} lists the unknown class {name!r}; {hint}"
    return None
