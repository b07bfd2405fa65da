"""From confusion matrices to IoU, group means, hIoU and forgetting; plain numpy.

Class ids are contiguous in learning order with background at 0; all scores are fractions from 0 to 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONVENTIONS = {"mib": (1, 1), "plop": (0, 0), "mbs": (0, 1)}
"""How papers count background: the first class id of `all`, and that of old, new, base and incremental."""


def iou_per_class(confusion: npt.NDArray[np.int64], background_evaluated: bool = True) -> FloatArray:
    """IoU of every class, (K,), from a pixel count matrix (K, K): rows are ground truth, columns prediction.

    A class that is absent from labels and predictions is nan; one that is present but never predicted is 0.
    `background_evaluated=False` is for evaluation labels in which background cannot occur (ADE20K): it becomes nan.
    Raises ValueError for a matrix that is not square.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion: expected a square matrix (K, K), found shape {confusion.shape}")
    counts = confusion.astype(np.float64)
    intersection = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - intersection
    iou = np.full(len(counts), np.nan)
    np.divide(intersection, union, out=iou, where=union > 0)
    if not background_evaluated:
        iou[0] = np.nan
    return iou


def mean_iou(iou: FloatArray, class_ids: Iterable[int]) -> float | None:
    """Mean of `iou` (K,) over `class_ids`, nan left out; None if nothing is left."""
    group = iou[np.fromiter(class_ids, dtype=np.int64)]
    group = group[~np.isnan(group)]
    return float(group.mean()) if group.size else None


def harmonic_mean(base: float | None, incremental: float | None) -> float | None:
    """hIoU = 2·base·incremental / (base + incremental); 0 if both are 0, None if either is None."""
    if base is None or incremental is None:
        return None
    total = base + incremental
    return 2 * base * incremental / total if total > 0 else 0.0


def forgetting_per_class(iou_history: Sequence[FloatArray]) -> FloatArray:
    """Best IoU so far (now included) minus IoU now, (K,) of the last step; nan where there is no IoU now.

    `iou_history[s]` is (K_s,), the classes known at step s; K_s never shrinks.
    """
    now = iou_history[-1]
    best = np.full(len(now), np.nan)
    for iou in iou_history:
        best[: len(iou)] = np.fmax(best[: len(iou)], iou)
    return best - now


def class_groups(convention: str, num_old: int, num_base: int, num_classes: int) -> dict[str, range]:
    """The class ids of every group of mIoU, as a convention (a key of CONVENTIONS) counts them.

    `num_old`, `num_base` and `num_classes` count background. At step 0, where old is empty, background is new.
    """
    first_of_all, first = CONVENTIONS[convention]
    return {
        "all": range(first_of_all, num_classes),
        "old": range(first, num_old),
        "new": range(max(first, num_old), num_classes),
        "base": range(first, num_base),
        "incremental": range(num_base, num_classes),
    }


def step_scores(
    iou_history: Sequence[FloatArray], num_old: int, num_new: int, num_base: int
) -> dict[str, Any]:
    """The scores of the last step of `iou_history`, None where a group is empty.

    `iou_history[s]` is (K_s,), the IoUs of step s, from step 0 on. `num_old`, `num_new` and `num_base` count
    background: 15-1 has 0/16/16 at step 0, 16/1/16 at step 1. The top level counts background in all, base and old
    (at step 0: new); `without_background` holds the same mIoUs and hIoU without it. `forgetting` is the mean over
    old classes except background. Raises ValueError where the sizes contradict each other.
    """
    sizes = [len(iou) for iou in iou_history]
    if not sizes or sizes != sorted(sizes) or sizes[-1] != num_old + num_new:
        raise ValueError(
            f"iou_history: expected sizes that never shrink and end at num_old + num_new = {num_old + num_new}, "
            f"found {sizes}"
        )
    forgetting = forgetting_per_class(iou_history)
    iou = iou_history[-1]
    return {
        **_group_scores(iou, class_groups("plop", num_old, num_base, len(iou))),
        "forgetting": mean_iou(forgetting, range(1, num_old)),
        "without_background": _group_scores(iou, class_groups("mib", num_old, num_base, len(iou))),
    }


def _group_scores(iou: FloatArray, groups: Mapping[str, range]) -> dict[str, float | None]:
    """mIoU of every group, and hIoU."""
    scores = {f"miou_{group}": mean_iou(iou, class_ids) for group, class_ids in groups.items()}
    return {**scores, "hiou": harmonic_mean(scores["miou_base"], scores["miou_incremental"])}
