"""Runs beside the published rows of their data set, task and setting, the nearest protocol first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datasets import DATASETS
from tools.published.counting import Figure, Ious, count_as, describe_counting, ious_of
from tools.published.protocol import Difference, find_differences, nearness
from tools.published.registry import Recipe, Row, is_method, recipe_of
from tools.summary.groups import mixed_fields
from tools.summary.runs import Run


@dataclass(frozen=True)
class Match:
    """A published row, the runs' figures counted as it counts, and what differs; counting: a sentence."""

    row: Row
    ours: Mapping[str, Figure | None]
    counting: str
    differences: list[Difference]

    @property
    def gap(self) -> float | None:
        """Ours minus published, in points of 'all'; None where either is missing or the way of counting not known."""
        theirs, ours = self.row.figures["all"], self.ours["all"]
        return None if theirs is None or ours is None or len(ours.values) > 1 else ours.values[0] - theirs


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in the seed only, and the published rows beside them; ious: of each run."""

    runs: list[Run]
    dataset: str
    task: str
    setting: str
    ious: list[Ious]
    num_base: int
    matches: list[Match]

    @property
    def title(self) -> str:
        """Who is compared."""
        seeds = ", ".join(str(run.fields["seed"]) for run in self.runs)
        name = self.runs[0].fields["variant"]
        return (
            f"{name} on {self.dataset} {self.task} ({self.setting}), seed{'s' * (len(self.runs) > 1)} {seeds}"
        )


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs in groups that differ in the seed only, in their order."""
    groups: list[list[Run]] = []
    for run in runs:
        alike = (group for group in groups if _is_repetition(group[0], run))
        group = next(alike, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def _is_repetition(first: Run, run: Run) -> bool:
    same = all(first.fields[name] == run.fields[name] for name in ("method", "variant", "dataset"))
    return same and not mixed_fields([first, run])


def compare(
    runs: Sequence[Run], rows: Sequence[Row], recipes: Sequence[Recipe], method: str | None = None
) -> Comparison:
    """Return runs of one protocol beside the rows of their data set, task and setting.

    method: as `registry.find_rows` takes it. Raises ValueError or OSError where a run's figures cannot be read.
    """
    run = runs[0]
    dataset, task, setting = place_of(run)
    ious = [ious_of(run) for run in runs]
    first = run.results["steps"][0]["per_class_iou"]
    found = [row for row in rows_of(run, rows) if method is None or is_method(row, method)]
    matches = [
        Match(
            row,
            count_as(row, ious, len(first)),
            describe_counting(row, not np.isnan(ious[0]["plop"][0])),
            find_differences(run, row, recipe_of(row, recipes)),
        )
        for row in found
    ]
    own = str(run.fields["method"])
    matches.sort(
        key=lambda m: (nearness(m.differences), not is_method(m.row, own), -(m.row.figures["all"] or 0))
    )
    return Comparison(list(runs), dataset, task, setting, ious, len(first), matches)


def rows_of(run: Run, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a run's data set, task and setting; those of unknown setting are among them.

    Joint training is what papers call offline; a run of task 'offline' has no steps, so every such row is one of its.
    """
    dataset, task, setting = place_of(run)
    settings = {setting, "unknown"}
    if run.fields["method"] == "joint" or task == "offline":
        settings = {"offline"}
    return [
        row
        for row in rows
        if row.dataset == dataset and row.setting in settings and task in (row.task, "offline")
    ]


def place_of(run: Run) -> tuple[str, str, str]:
    """Return data set, task and setting by the names of the registry.

    A task of lists that hold all classes of the data set is called as papers call its sizes, such as 15-1.
    """
    results = run.results
    dataset, task = str(results["dataset"]), str(results["task"])
    classes = DATASETS[dataset].classes if dataset in DATASETS else None
    if classes is not None and set(results["class_names"]) == set(classes) and results["setting"] != "domain":
        base, *later = (len(step["new_classes"]) for step in results["steps"])
        if not later:
            task = "offline"
        elif len({*later[:-1]}) <= 1 and later[-1] <= later[0]:
            task = f"{base - 1}-{later[0]}"
    return dataset, task, str(results["setting"])
