"""A run's figures in the way in which a published row counts background and classes without any hit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tools.published.registry import GROUPS, Row
from tools.summary.runs import Run
from utils.metrics import CONVENTIONS, iou_per_class, mean_iou
from utils.report.run_files import load_confusion

Ious = Mapping[str, npt.NDArray[np.float64]]
"""IoUs (K,) of a run's last step, by convention of `utils.metrics.CONVENTIONS`."""


class Figure(NamedTuple):
    """A figure in percent: one value where the row's way of counting is known, else that with background counted and
    that without; deviation: over seeds, None for one run.
    """

    values: tuple[float, ...]
    deviation: float | None = None

    def __str__(self) -> str:
        text = " or ".join(f"{value:.1f}" for value in self.values)
        return text if self.deviation is None else f"{text} ± {self.deviation:.1f}"


def last_iou(run: Run) -> npt.NDArray[np.float64]:
    """Return the IoUs (K,) after the last step, from the confusion matrix of the run's folder.

    A line of a table has no confusion matrix: its `per_class_iou`, which came from one, is taken. Raises ValueError
    where the two have other classes, OSError where the matrix cannot be read.
    """
    step = run.results["steps"][-1]
    stored = _vector(step["per_class_iou"])
    folder = Path(run.source)
    if not folder.is_dir():
        return stored
    confusion = load_confusion(folder, step["step"])
    if len(confusion) != len(stored):
        raise ValueError(
            f"{folder}: confusion/step_{step['step']}.csv has {len(confusion)} classes, results.json {len(stored)}; "
            "evaluate the run again"
        )
    return iou_per_class(confusion, background_evaluated=not np.isnan(stored[0]))


def ious_of(run: Run) -> Ious:
    """Return the IoUs after the last step as each convention has background count; raises as `last_iou` does."""
    iou = last_iou(run)
    others = run.results["steps"][-1].get("per_class_iou_of", {})
    return {name: _vector(others[name]) if name in others else iou for name in CONVENTIONS}


def _vector(per_class: Mapping[str, float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if iou is None else iou for iou in per_class.values()])


def count_as(row: Row, ious: Sequence[Ious], num_base: int) -> dict[str, Figure | None]:
    """Return base, incremental and all of the runs' IoUs as a row counts them: the mean over the runs.

    num_base: classes of step 0, background among them. None for a group without any IoU.
    """
    return {group: _count_group(row, ious, num_base, group) for group in GROUPS}


def _count_group(row: Row, ious: Sequence[Ious], num_base: int, group: str) -> Figure | None:
    answer = row.background.get(group, "no")  # background is in no later group
    firsts = {"yes": (0,), "no": (1,), "unknown": (0, 1)}[answer]
    values, deviation = [], None
    for first in firsts:
        # Who counts background in `all` lets its pixels count everywhere.
        convention = "plop" if first == 0 or row.background.get("all") == "yes" else "mib"
        vectors = [of_run[convention] for of_run in ious]
        scores = [_mean(row, iou, _classes(group, first, num_base, len(iou)), group) for iou in vectors]
        if any(score is None for score in scores):
            return None
        known = [100 * score for score in scores if score is not None]
        values.append(float(np.mean(known)))
        if len(known) > 1:
            deviation = max(deviation or 0.0, float(np.std(known, ddof=1)))
    same = len(values) == 2 and values[0] == values[1]  # where background has no IoU
    return Figure(tuple(values[:1] if same else values), deviation)


def _classes(group: str, first: int, num_base: int, num_classes: int) -> range:
    ranges = {"base": range(first, num_base), "incremental": range(num_base, num_classes)}
    return ranges.get(group, range(first, num_classes))


def _mean(row: Row, iou: npt.NDArray[np.float64], class_ids: range, group: str) -> float | None:
    if row.drops_zero_iou and group == "all":
        iou = np.where(iou == 0, np.nan, iou)
    return mean_iou(iou, class_ids)


def describe_counting(row: Row, background_has_iou: bool) -> str:
    """Say how a row counts, as a sentence; background_has_iou: whether background has one in the run."""
    printed = [group for group in ("base", "all") if row.figures[group] is not None]
    counted: Mapping[str, list[str]] = {
        answer: [group for group in printed if row.background[group] == answer]
        for answer in ("yes", "no", "unknown")
    }
    told = []
    if counted["yes"]:
        told.append(f"background counts in {' and '.join(counted['yes'])}")
    if counted["no"]:
        told.append(f"background does not count in {' and '.join(counted['no'])}")
    if counted["unknown"]:
        told.append(f"whether background counts in {' and '.join(counted['unknown'])} is not known")
    if row.drops_zero_iou:
        told.append("classes of IoU 0 are left out of all")
    if not background_has_iou and (counted["yes"] or counted["unknown"]):
        told.append("it has no IoU in this run, whose figures leave it out")
    return "; ".join(told)
