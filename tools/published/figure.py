"""The figure of `tools/compare.py`: runs and published rows over tasks."""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from tools.published.comparison import Comparison
from utils.metrics import mean_iou

_FILLS = {"yes": "full", "no": "none", "unknown": "none"}
_MARKERS = {"yes": "o", "no": "o", "unknown": "x"}


@mpl.rc_context(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
)
def draw(comparisons: Sequence[Comparison]) -> bytes:
    """PNG: mIoU (all) a task, published rows grey with their names, runs in colour.

    A full marker counts background, an empty one does not, a cross does not say.
    """
    places = list(dict.fromkeys((c.dataset, c.task, c.setting) for c in comparisons))
    figure = Figure(figsize=(max(5.0, 1.5 + 2.4 * len(places)), 5), layout="constrained")
    axes = figure.subplots()
    for x, place in enumerate(places):
        here = [c for c in comparisons if (c.dataset, c.task, c.setting) == place]
        printed = [(row.figures["all"], row) for row in (match.row for match in here[0].matches)]
        known = sorted(
            ((value, row.method, row.background["all"]) for value, row in printed if value is not None)
        )
        for value, _, answer in known:
            axes.plot(x, value, _MARKERS[answer], color="0.55", fillstyle=_FILLS[answer], markersize=4)
        for value, names in name_near([(value, name) for value, name, _ in known]):
            axes.annotate(names, (x, value), (6, -2), textcoords="offset points", fontsize=5, color="0.4")
        for index, comparison in enumerate(here):
            _draw_runs(axes, comparison, x - 0.1 - 0.08 * index, f"C{comparisons.index(comparison) % 10}")
    axes.set_xticks(range(len(places)), [f"{data} {task}\n{setting}" for data, task, setting in places])
    axes.set(ylabel="mIoU, all (percent)", xlim=(-0.5, len(places) - 0.3))
    axes.set_title("full: background counts · empty: it does not · cross: not known", fontsize=7)
    axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def name_near(points: Sequence[tuple[float, str]], apart: float = 1.3) -> list[tuple[float, str]]:
    """Return a label for every group of points, sorted by value, that lie nearer than labels may; three names each."""
    groups: list[list[tuple[float, str]]] = []
    for value, name in points:
        if groups and value - groups[-1][0][0] < apart:
            groups[-1].append((value, name))
        else:
            groups.append([(value, name)])
    labels = []
    for group in groups:
        names = list(dict.fromkeys(name for _, name in group))
        more = f" +{len(names) - 3}" if len(names) > 3 else ""
        labels.append((sum(value for value, _ in group) / len(group), ", ".join(names[:3]) + more))
    return labels


def _draw_runs(axes: mpl.axes.Axes, comparison: Comparison, x: float, colour: str) -> None:
    """Draw every run twice, with background and without."""
    for first, convention, fill in ((0, "plop", "full"), (1, "mib", "none")):
        vectors = [ious[convention] for ious in comparison.ious]
        values = [mean_iou(iou, range(first, len(iou))) for iou in vectors]
        known = [100 * value for value in values if value is not None]
        label = comparison.title if first == 0 else None
        axes.plot([x] * len(known), known, "s", color=colour, fillstyle=fill, markersize=6, label=label)
