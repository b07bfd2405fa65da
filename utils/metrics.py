"""From confusion matrices to IoU, group means, hIoU, forgetting and what is confused; plain numpy.

Class ids are contiguous in learning order with background at 0; all scores are fractions from 0 to 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Convention(NamedTuple):
    """How a line of papers counts background and classes without any hit.

    first_of_all: the first class id of `all`; first: that of old, new, base and incremental. may_void: whether pixels
    of background are void where the data set says so (ADE20K), or always count. drops_zero: whether `all` leaves out
    classes whose IoU is exactly 0.
    """

    first_of_all: int
    first: int
    may_void: bool = False
    drops_zero: bool = False


CONVENTIONS = {
    "mib": Convention(1, 1, may_void=True),
    "plop": Convention(0, 0),
    "mbs": Convention(0, 1, drops_zero=True),
}
"""As the released codes of MiB, of PLOP, SSUL and DKD, and of MBS have it."""


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
    iou = _divide(intersection, union)
    if not background_evaluated:
        iou[0] = np.nan
    return iou


def leave_out_unlabelled(
    confusion: npt.NDArray[np.int64], unlabelled: Iterable[int]
) -> npt.NDArray[np.int64]:
    """Pixel counts (K, K) without what labels that leave classes out cannot tell.

    That are background predicted as such a class, which it may well show, and pixels that are labelled so after all.
    """
    kept, ids = confusion.copy(), list(unlabelled)
    kept[0, ids] = 0
    kept[ids] = 0
    return kept


def iou_of_labelled(iou: FloatArray, unlabelled: Iterable[int]) -> FloatArray:
    """IoUs (K,) without those of unlabelled classes, and without background's where no other class is labelled."""
    kept = iou.copy()
    kept[list(unlabelled)] = np.nan
    if len(kept) > 1 and len({*unlabelled}) == len(kept) - 1:
        kept[0] = np.nan
    return kept


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


def lost_to_background(confusion: npt.NDArray[np.int64]) -> FloatArray:
    """Share of every class's labelled pixels that is predicted as background, (K,), from pixel counts (K, K).

    nan for background itself and for a class without labelled pixels.
    """
    counts = confusion.astype(np.float64)
    share = _divide(counts[:, 0], counts.sum(axis=1))
    share[0] = np.nan
    return share


def pixel_flow(confusion: npt.NDArray[np.int64], num_old: int) -> FloatArray:
    """Where labelled pixels go, (3, 4) shares of each row, nan for a row without pixels.

    Rows: background, old and new classes by label. Columns: predicted as labelled, as background, as another old
    class, as another new class. `num_old` counts background; at step 0, where it is 0, no class is old.
    """
    counts = confusion.astype(np.float64)
    first_new = max(1, num_old)
    groups = [slice(0, 1), slice(1, first_new), slice(first_new, None)]
    correct = np.array([np.diag(counts)[group].sum() for group in groups])
    into = np.array([[counts[row, column].sum() for column in groups] for row in groups])
    into[np.diag_indices(3)] -= correct
    flow = np.column_stack([correct, into])
    return _divide(flow, flow.sum(axis=1, keepdims=True))


class Confused(NamedTuple):
    """Pixels of class `label` that are predicted as class `predicted`.

    share: of the label's pixels. cost: by how much they lower the IoUs of the two classes together, had those no other
    fault: pixels / union, added up over both.
    """

    label: int
    predicted: int
    share: float
    cost: float


def worst_confusions(confusion: npt.NDArray[np.int64], count: int) -> list[Confused]:
    """The pairs of classes whose confusion costs the most IoU, at most `count`, the worst first.

    Ranked by cost, so that a small class taken for background (few of the pixels of either's union) and background
    taken for it weigh alike.
    """
    counts = confusion.astype(np.float64)
    labelled, diagonal = counts.sum(axis=1), np.diag(counts)
    union = labelled + counts.sum(axis=0) - diagonal
    share = np.nan_to_num(_divide(counts, labelled[:, None]))
    cost = np.nan_to_num(_divide(counts, union[:, None])) + np.nan_to_num(_divide(counts, union[None]))
    np.fill_diagonal(cost, 0)
    order = np.argsort(-cost, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, cost.shape), strict=True)
    return [
        Confused(int(a), int(b), float(share[a, b]), float(cost[a, b])) for a, b in pairs if cost[a, b] > 0
    ]


def _divide(counts: FloatArray, total: FloatArray) -> FloatArray:
    """counts / total, nan where the total is 0."""
    quotient = np.full(np.broadcast_shapes(counts.shape, total.shape), np.nan)
    np.divide(counts, total, out=quotient, where=np.broadcast_to(total > 0, quotient.shape))
    return quotient


def class_groups(convention: str, num_old: int, num_base: int, num_classes: int) -> dict[str, range]:
    """The class ids of every group of mIoU, as a convention (a key of CONVENTIONS) counts them.

    `num_old`, `num_base` and `num_classes` count background. At step 0, where old is empty, background is new.
    """
    first = CONVENTIONS[convention].first
    return {
        "all": range(CONVENTIONS[convention].first_of_all, num_classes),
        "old": range(first, num_old),
        "new": range(max(first, num_old), num_classes),
        "base": range(first, num_base),
        "incremental": range(num_base, num_classes),
    }


def averaged_classes(convention: str, group: str, iou: FloatArray, class_ids: Iterable[int]) -> list[int]:
    """Return which classes of a group (of `class_groups`) a convention averages, given all IoUs (K,).

    They are those that have an IoU; for some conventions, in `all`, those above 0.
    """
    drops_zero = CONVENTIONS[convention].drops_zero and group == "all"
    return [c for c in class_ids if not np.isnan(iou[c]) and not (drops_zero and iou[c] == 0)]


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
