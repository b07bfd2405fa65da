"""Runs that belong together: which are taken, what their means are, and which group is best."""

import statistics
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from tools.summary.runs import COLUMNS, Run, score_of
from trainer.stored_config import MAY_DIFFER
from utils.config.fields import is_below

RIVALS = ("method", "variant")
"""Fields whose rows compete for the best score."""


class Row(NamedTuple):
    """The runs of one group, all complete, and their scores: (mean, deviation) as fractions, or None.

    published: the source of a published row, which has no runs; '' for runs.
    """

    key: tuple[str, ...]
    runs: list[Run]
    scores: dict[str, tuple[float, float | None] | None]
    published: str = ""


def select(runs: Sequence[Run], where: str) -> list[Run]:
    """Return the runs whose fields match every 'FIELD=PATTERN' of `where`, which commas separate.

    A pattern is a shell's (*, ?, [a-z]); alternatives are joined by '|', and the runs stand in their order. A run
    without the field, such as one of another method, matches no pattern. Raises ValueError for what is no such
    condition, for a field that no run has, and where no run is left.
    """
    conditions = [tuple(part.strip() for part in text.partition("=")) for text in where.split(",")]
    wrong = [name for name, separator, pattern in conditions if not (name and separator and pattern)]
    if wrong:
        raise ValueError(
            f"--where {where}: expected FIELD=PATTERN,FIELD=PATTERN, such as setting=overlap,log=*_mbs_*"
        )
    for name, _, _ in conditions:
        if not any(name in run.fields for run in runs):
            runs[0].field(name, "--where")

    def ranks(run: Run) -> list[int | None]:
        """Return the place of the first alternative that matches, for every condition; None where none does."""
        found = []
        for name, _, patterns in conditions:
            alternatives = patterns.split("|") if name in run.fields else []
            matching = [i for i, p in enumerate(alternatives) if fnmatchcase(str(run.fields[name]), p)]
            found.append(min(matching, default=None))
        return found

    ranked = [(ranks(run), run) for run in runs]
    kept = [(rank, run) for rank, run in ranked if None not in rank]
    if not kept:
        raise ValueError(f"--where {where}: none of {len(runs)} runs matches; change the patterns")
    return [run for _, run in sorted(kept, key=lambda pair: pair[0])]


def summarize(runs: Sequence[Run], group_by: Sequence[str]) -> list[Row]:
    """Return a row for every group of complete runs, in the order of the runs.

    Raises ValueError where a run has no such field.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in (run for run in runs if run.is_complete):
        groups.setdefault(tuple(run.field(field, "--group-by") for field in group_by), []).append(run)
    return [
        Row(key, members, {score: mean_and_deviation(members, score) for score in COLUMNS})
        for key, members in groups.items()
    ]


def mean_and_deviation(runs: Sequence[Run], score: str, step: int = -1) -> tuple[float, float | None] | None:
    """Return the mean of a step's score over runs and its deviation (None for one); None if a run has no value."""
    values = [score_of(run.results["steps"][step], score) for run in runs]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def mixed_fields(runs: Sequence[Run]) -> list[str]:
    """Return the fields, but for the seed, that may change results and in which runs differ."""
    fields = sorted({field for run in runs for field in run.fields})
    free = (*MAY_DIFFER, "seed", "init_from", "class_names")
    return [
        field
        for field in fields
        if len({str(run.fields[field]) for run in runs if field in run.fields}) > 1
        and not is_below(field, free)
    ]


def best_rows(rows: Sequence[Row], group_by: Sequence[str], score: str) -> set[int]:
    """Indices of the rows that are best among those that differ in method or variant only; none where one is alone."""
    rivals: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        rest = tuple(part for part, field in zip(row.key, group_by, strict=True) if field not in RIVALS)
        competes = bool(row.runs) and row.runs[0].fields["method"] != "joint"
        if competes and row.scores[score] is not None:
            rivals.setdefault(rest if set(RIVALS) & set(group_by) else (), []).append(index)
    sign = -1 if score == "forgetting" else 1

    def mean(index: int) -> float:
        found = rows[index].scores[score]
        assert found is not None
        return sign * found[0]

    groups = (group for group in rivals.values() if len(group) > 1)
    return {i for group in groups for i in group if mean(i) == max(map(mean, group))}
