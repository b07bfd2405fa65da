"""The figures of a run, drawn from the contents of results.json as PNG bytes; no display and no global state."""

import io
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.metrics import FloatArray, forgetting_per_class

_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "text.parse_math": False,  # a class name may hold a dollar sign
}
# Okabe and Ito's colours, safe for colour-blind readers; markers and dashes tell the lines apart in print.
GROUP_LINES = {
    "miou_all": ("all", "#000000", "o", "-"),
    "miou_base": ("base", "#0072B2", "s", "--"),
    "miou_incremental": ("incremental", "#D55E00", "^", "--"),
    "miou_old": ("old", "#56B4E9", "D", ":"),
    "miou_new": ("new", "#E69F00", "v", ":"),
}
_LOST = "#D55E00"
_NOT_LEARNED, _ABSENT = "#EEEEEE", "#BDBDBD"
_ROWS_PER_PANEL = 52
_ROW_INCHES = 0.19
_MAX_ANNOTATED_STEPS = 16
_MAX_NAMED_STEPS = 7


def run_title(results: Mapping[str, Any]) -> str:
    """The run in one line: task, setting, method, data set and seed."""
    parts = [str(results[key]) for key in ("task", "setting", "method", "dataset")]
    return " · ".join([*parts, f"seed {results['seed']}"])


@mpl.rc_context(_STYLE)
def draw_miou_over_steps(results: Mapping[str, Any]) -> bytes:
    """mIoU of the groups after every step, in percent, background counted where it falls in the group."""
    steps = results["steps"]
    figure = Figure(figsize=(_width_over_steps(results) + 1.2, 3.3), layout="constrained")
    axes = figure.add_subplot()
    highest = 0.0
    for rank, (key, (label, colour, marker, dashes)) in enumerate(GROUP_LINES.items()):
        points = [(step["step"], 100 * step[key]) for step in steps if step[key] is not None]
        if not points:
            continue
        highest = max(highest, *(value for _, value in points))
        # The first lines lie on top but are drawn smaller, so that equal scores stay visible as rings.
        axes.plot(
            *zip(*points, strict=True),
            label=label,
            color=colour,
            marker=marker,
            linestyle=dashes,
            linewidth=2.0 if key == "miou_all" else 1.4,
            markersize=4.0 + 0.8 * rank,
            zorder=10 - rank,
            clip_on=False,
        )
    _label_steps(axes, results)
    axes.set_ylim(0, min(100.0, 10 * math.ceil(highest / 10 + 0.2)))
    axes.set_ylabel("mIoU (%)")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    _write_title(figure, results)
    if axes.lines:  # of masks that are all ignored there is no score
        figure.legend(loc="outside right center")
    return _to_png(figure)


@mpl.rc_context(_STYLE)
def draw_per_class_iou(results: Mapping[str, Any]) -> bytes:
    """Heat map of IoU in percent, classes in learning order by steps; many classes fill several panels."""
    steps, names = results["steps"], results["class_names"]
    iou = iou_matrix(results)
    annotated = len(steps) <= _MAX_ANNOTATED_STEPS
    num_panels, rows = _panels(len(names))
    cells_inches = max(1.8, 0.4 * len(steps)) if annotated else 6.4
    names_inches = 0.2 + 0.075 * max(map(len, names))
    figure = Figure(
        figsize=(num_panels * (cells_inches + names_inches) + 0.9, _ROW_INCHES * rows + 1.3),
        layout="constrained",
    )
    *panels, colour_bar = figure.subplots(
        1, num_panels + 1, width_ratios=[cells_inches] * num_panels + [0.14]
    )
    for panel, axes in enumerate(panels):
        first = panel * rows
        block = 100 * iou[first : first + rows]
        image = axes.imshow(block, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        # Every panel spans the same number of rows, so that cells of the last, shorter one are not taller.
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_yticks(range(len(block)), names[first : first + rows], fontsize=8)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        _mark_cells(axes, results, first, block, annotated)
        _number_steps(axes, results)
        axes.set_xlabel("step")
    figure.colorbar(image, cax=colour_bar, label="IoU (%)")
    _write_title(figure, results)
    keys = [
        Patch(facecolor=_NOT_LEARNED, label="not learned yet"),
        Patch(facecolor=_ABSENT, label="absent or not evaluated"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, fontsize=8)
    return _to_png(figure)


@mpl.rc_context(_STYLE)
def draw_forgetting(results: Mapping[str, Any]) -> bytes:
    """Mean forgetting after every step above the forgetting of each old class at the last one, in points of IoU."""
    steps = results["steps"]
    if all(step["forgetting"] is None for step in steps):
        return _draw_notice(
            results, "There is nothing to forget yet:\nno class was learned before the last step."
        )
    num_old = len(steps[-2]["per_class_iou"])
    names = results["class_names"][1:num_old]
    lost = 100 * forgetting_per_class(list(iou_matrix(results).T))[1:num_old]
    num_panels, rows = _panels(len(lost))
    heights = [1.9, max(1.0, _ROW_INCHES * rows)]
    width = max(3.2 * num_panels, _width_over_steps(results))
    figure = Figure(figsize=(width, sum(heights) + 1.7), layout="constrained")
    _write_title(figure, results)
    grid = figure.add_gridspec(2, num_panels, height_ratios=heights)
    _draw_mean_forgetting(figure.add_subplot(grid[0, :]), results)
    for panel in range(num_panels):
        axes = figure.add_subplot(grid[1, panel])
        first = panel * rows
        block = lost[first : first + rows]
        _draw_bars(axes, block, names[first : first + rows])
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlim(0, max(1.0, 1.15 * np.nan_to_num(lost).max()))
        if panel == 0:
            axes.set_title(f"Each old class after step {steps[-1]['step']}", loc="left")
    return _to_png(figure)


def _draw_mean_forgetting(axes: Axes, results: Mapping[str, Any]) -> None:
    points = [
        (step["step"], 100 * step["forgetting"])
        for step in results["steps"]
        if step["forgetting"] is not None
    ]
    axes.plot(*zip(*points, strict=True), color="#000000", marker="o", markersize=4, clip_on=False)
    _label_steps(axes, results)
    axes.set_ylim(0, max(1.0, 1.2 * max(value for _, value in points)))
    axes.set_ylabel("forgetting (points)")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_title("Mean over old classes", loc="left")


def _draw_bars(axes: Axes, lost: FloatArray, names: list[str]) -> None:
    """One horizontal bar a class with its value beside it; a class without an IoU now is named so."""
    bars = axes.barh(range(len(lost)), np.nan_to_num(lost), height=0.7, color=_LOST)
    labels = ["absent" if np.isnan(value) else f"{value:.1f}" for value in lost]
    axes.bar_label(bars, labels, padding=2, fontsize=7, color="#444444")
    axes.set_yticks(range(len(lost)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_xlabel("best IoU so far − IoU now (points)")


def _draw_notice(results: Mapping[str, Any], text: str) -> bytes:
    figure = Figure(figsize=(4.8, 2.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color="#444444")
    _write_title(figure, results)
    return _to_png(figure)


def _mark_cells(
    axes: Axes, results: Mapping[str, Any], first: int, block: FloatArray, annotated: bool
) -> None:
    """Grey for cells without an IoU, the number in the others, a line above the classes of each step."""
    steps = results["steps"]
    names = results["class_names"][first : first + len(block)]
    known = [[float(name in step["per_class_iou"]) for step in steps] for name in names]
    greys = ListedColormap([_NOT_LEARNED, _ABSENT])
    axes.imshow(np.where(np.isnan(block), known, np.nan), cmap=greys, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(block):
        if annotated and not np.isnan(value):
            colour = "#FFFFFF" if value < 55 else "#000000"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    for step in steps[:-1]:
        border = len(step["per_class_iou"]) - first
        if 0 < border < len(block):
            axes.axhline(border - 0.5, color="#FFFFFF", linewidth=1.5)


def iou_matrix(results: Mapping[str, Any]) -> FloatArray:
    """IoU (classes of the task, steps); nan where a class was not learned yet or has no IoU."""
    values = [
        [step["per_class_iou"].get(name) for step in results["steps"]] for name in results["class_names"]
    ]
    return np.array(values, dtype=np.float64)  # None becomes nan


def _panels(num_rows: int) -> tuple[int, int]:
    """How many panels side by side, and how many rows in each: as even as possible."""
    num_panels = math.ceil(num_rows / _ROWS_PER_PANEL)
    return num_panels, math.ceil(num_rows / num_panels)


def _number_steps(axes: Axes, results: Mapping[str, Any]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    axes.set_xlim(-0.5, len(results["steps"]) - 0.5)


def _label_steps(axes: Axes, results: Mapping[str, Any]) -> None:
    """The steps on the x axis, with what each adds while there is room for it."""
    steps = results["steps"]
    axes.set_xlabel("step")
    if len(steps) > _MAX_NAMED_STEPS:
        _number_steps(axes, results)
        return
    labels = []
    for step in steps:
        added = [name for name in step["new_classes"] if name != results["class_names"][0]]
        named = len(added) == 1 and len(added[0]) <= 12
        labels.append(f"{step['step']}\n+ {added[0] if named else f'{len(added)} classes'}")
    axes.set_xticks([step["step"] for step in steps], labels, fontsize=8)
    axes.set_xlim(-0.35, len(steps) - 0.65)


def _width_over_steps(results: Mapping[str, Any]) -> float:
    """Inches for an axis over steps whose labels do not touch."""
    num_steps = len(results["steps"])
    return (
        max(4.6, 0.9 * num_steps + 0.8) if num_steps <= _MAX_NAMED_STEPS else min(9.0, 0.3 * num_steps + 3.0)
    )


def _write_title(figure: Figure, results: Mapping[str, Any]) -> None:
    """The run above the figure, broken where it is wider than the figure."""
    lines = textwrap.wrap(
        run_title(results), int(12.5 * figure.get_figwidth()), max_lines=3, placeholder=" …"
    )
    figure.suptitle("\n".join(lines), fontsize=9)


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()
