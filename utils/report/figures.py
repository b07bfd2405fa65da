"""The interactive figures of report.html, drawn by Plotly from what a run has written; all values in percent."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.subplots import make_subplots

from utils.metrics import FloatArray
from utils.report.plots import GROUP_LINES

# Plotly's own style takes half of a report's time: it is built and checked anew for every figure.
plotly.io.templates.default = None

MAX_ANNOTATED_STEPS = 10
MAX_POINTS = 1500
"""Of a training curve; a browser draws no more of them, and the file stays small."""
MAX_MARKERS = 40
WITH_LEGEND = 112
"""Pixels above a plot with a legend of two lines."""
FLOW_COLOURS = {
    "predicted as labelled": "#9AA5B1",
    "predicted as background": "#1A1A1A",
    "predicted as another old class": "#0072B2",
    "predicted as another new class": "#E69F00",
}
ON_DARK = {"#000000": "#F2F4F6", "#1A1A1A": "#F2F4F6", "#0072B2": "#3FA7E0"}
"""Of lines and bars that do not show on a dark page: black, and a dark blue."""
_DASHES = {"-": "solid", "--": "dash", ":": "dot"}
_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down"}
_NOT_LEARNED = "#F0F0F0"
_GRID = "#E6E6E6"


def draw_miou(steps: Sequence[Mapping[str, Any]]) -> go.Figure:
    """mIoU of the groups over the steps, background counted where it falls in a group, and without it."""
    titles = ("background counted", "without background")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04)
    index = [step["step"] for step in steps]
    for key, (label, colour, marker, dash) in GROUP_LINES.items():
        for column, scores in enumerate((steps, [step["without_background"] for step in steps]), start=1):
            figure.add_scatter(
                x=index,
                y=[_percent(score[key]) for score in scores],
                name=label,
                legendgroup=key,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "dash": _DASHES[dash], "width": 3 if key == "miou_all" else 2},
                meta=_colours(colour),
                marker={"symbol": _SYMBOLS[marker], "size": 8},
                hovertemplate="%{y:.1f}",
                row=1,
                col=column,
            )
    figure.update_yaxes(rangemode="tozero", gridcolor=_GRID, ticksuffix=" %")
    figure.update_xaxes(title_text="step", **_step_axis(index))
    return _finish(figure, height=400, above=WITH_LEGEND, hovermode="x unified")


def draw_classes(
    names: Sequence[str],
    colours: Sequence[str],
    iou: FloatArray,
    forgetting: FloatArray,
    lost: FloatArray,
    first_ids: Sequence[int],
) -> go.Figure:
    """Three heat maps over the same rows of classes: IoU, forgetting, share of pixels lost to background.

    iou, forgetting, lost: (classes, steps), fractions, nan where there is none. first_ids: the first class of every
    step but the first, above which a line is drawn.
    """
    num_classes, num_steps = iou.shape
    is_long = num_classes > 60
    titles = ("IoU", "forgetting", "lost to background")
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02)
    scales = (("Cividis", 100), ("Reds", _highest(forgetting)), ("Purples", _highest(lost)))
    shown = [html.escape(name) for name in names]
    for column, (values, (scale, highest)) in enumerate(
        zip((iou, forgetting, lost), scales, strict=True), start=1
    ):
        figure.add_heatmap(
            z=100 * values,
            x=list(range(num_steps)),
            y=list(range(num_classes)),
            customdata=np.repeat(np.array(shown, dtype=object)[:, None], num_steps, axis=1),
            colorscale=scale,
            zmin=0,
            zmax=highest,
            showscale=False,
            hoverongaps=False,
            hovertemplate="%{customdata}, step %{x}: %{z:.1f}<extra></extra>",
            texttemplate="%{z:.1f}" if num_steps <= MAX_ANNOTATED_STEPS else None,
            textfont={"size": 10},
            xgap=1,
            ygap=0 if is_long else 1,
            row=1,
            col=column,
        )
    figure.layout.shapes = _borders(first_ids)
    swatches = [
        f'{name} <span style="color:{colour}">■</span>' for name, colour in zip(shown, colours, strict=True)
    ]
    figure.update_yaxes(range=[num_classes - 0.5, -0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(
        tickvals=list(range(num_classes)), ticktext=swatches, tickfont={"size": 10 if is_long else 12}, col=1
    )
    figure.update_xaxes(title_text="step", showgrid=False, **_step_axis(range(num_steps)))
    figure.update_layout(plot_bgcolor=_NOT_LEARNED)
    return _finish(figure, height=110 + num_classes * (14 if is_long else 20))


def _borders(first_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return white lines across the three heat maps, above these rows."""
    return [
        {
            "type": "line",
            "xref": f"{axis} domain",
            "yref": "y",
            "x0": 0,
            "x1": 1,
            "y0": first - 0.5,
            "y1": first - 0.5,
            "line": {"color": "#FFFFFF", "width": 3},
        }
        for first in first_ids
        for axis in ("x", "x2", "x3")
    ]


def draw_flow(steps: Sequence[int], flows: Sequence[FloatArray]) -> go.Figure:
    """Where the pixels of background, old and new classes go at every step: stacked shares, (3, 4) a step."""
    rows = ("pixels labelled background", "of old classes", "of new classes")
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=rows, horizontal_spacing=0.03)
    for column, (kind, colour) in enumerate(FLOW_COLOURS.items()):
        for row in range(3):
            figure.add_bar(
                x=list(steps),
                y=[_percent(float(flow[row, column])) for flow in flows],
                name=kind,
                legendgroup=kind,
                showlegend=row == 0,
                marker={"color": colour, "line": {"width": 0}},
                meta=_colours(colour),
                hovertemplate="%{y:.1f}",
                row=1,
                col=row + 1,
            )
    figure.update_yaxes(range=[0, 100], ticksuffix=" %", gridcolor=_GRID)
    figure.update_xaxes(title_text="step", **_step_axis(steps))
    return _finish(figure, height=400, above=WITH_LEGEND, barmode="stack", bargap=0.25, hovermode="x unified")


def draw_curves(lines: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Every number of the training over the run's iterations, a dotted line where a step begins.

    lines: those of metrics.jsonl that training wrote. A curve of many points shows means of neighbours.
    """
    names = list(dict.fromkeys(name for line in lines for name in line))
    first, last = ("step", "iteration", "epoch", "loss"), ("lr", "images_per_second")
    names = ["loss", *(name for name in names if name not in (*first, *last)), *last]
    num_rows = math.ceil(len(names) / 2)
    figure = make_subplots(
        num_rows,
        2,
        shared_xaxes=True,
        subplot_titles=[name.replace("_", " ") for name in names],
        horizontal_spacing=0.07,
        vertical_spacing=0.18 / num_rows,
    )
    for number, name in enumerate(names):
        x, y = _curve(lines, name)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines" if len(lines) > MAX_MARKERS else "lines+markers",
            line={"color": "#0072B2", "width": 1.5},
            meta=_colours("#0072B2"),
            connectgaps=False,
            showlegend=False,
            hovertemplate="iteration %{x:.0f}: %{y:.4g}<extra></extra>",
            row=number // 2 + 1,
            col=number % 2 + 1,
        )
    starts = {line["step"]: line["iteration"] for line in reversed(lines)}
    # Together: add_vline takes seconds where there are many.
    figure.layout.shapes = [
        {
            "type": "line",
            "xref": f"x{number}",
            "yref": f"y{number} domain",
            "x0": iteration,
            "x1": iteration,
            "y0": 0,
            "y1": 1,
            "line": {"color": "#BBBBBB", "width": 1, "dash": "dot"},
        }
        for step, iteration in starts.items()
        if step > 0
        for number in ("", *range(2, len(names) + 1))
    ]
    figure.update_yaxes(gridcolor=_GRID, rangemode="tozero", exponentformat="power")
    figure.update_xaxes(gridcolor=_GRID)
    for number in range(max(0, len(names) - 2), len(names)):  # the lowest of each column
        axis = {"title_text": "iteration of the run", "showticklabels": True}
        figure.update_xaxes(axis, row=number // 2 + 1, col=number % 2 + 1)
    return _finish(figure, height=60 + 190 * num_rows)


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float | None], list[float | None]]:
    """A number over the iterations, thinned out to MAX_POINTS by means; None between steps breaks the line."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for line in lines:
        if line.get(name) is not None:
            by_step.setdefault(line["step"], []).append((line["iteration"], line[name]))
    size = math.ceil(sum(map(len, by_step.values())) / MAX_POINTS) or 1
    x: list[float | None] = []
    y: list[float | None] = []
    for points in by_step.values():
        for start in range(0, len(points), size):
            means = np.mean(points[start : start + size], axis=0).tolist()
            x.append(means[0])
            y.append(means[1])
        x.append(None)
        y.append(None)
    return x, y


def _colours(colour: str) -> dict[str, str] | None:
    """A trace's colour and the one that it has on a dark page, for the page's script; None where it shows on both."""
    return {"light": colour, "dark": ON_DARK[colour]} if colour in ON_DARK else None


def _highest(values: FloatArray) -> float:
    """The upper end of a colour scale, in percent: 10 at least, so that a little does not look like much."""
    return max(10.0, 100 * float(np.nanmax(values))) if not np.isnan(values).all() else 10.0


def _step_axis(steps: Sequence[int]) -> dict[str, Any]:
    """Whole numbers only, not more of them than fit."""
    return {
        "tick0": 0,
        "dtick": math.ceil(len(steps) / 12),
        "range": [min(steps) - 0.5, max(steps) + 0.5],
        "zeroline": False,
    }


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None or math.isnan(fraction) else 100 * fraction


def _finish(figure: go.Figure, height: int, above: int = 50, **layout: Any) -> go.Figure:
    """above: pixels for what stands above the plot: the toolbar, then a legend, then titles."""
    base = {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": above, "b": 10},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
        "legend": {"orientation": "h", "y": 1 + 26 / (height - above - 50), "yanchor": "bottom", "x": 0},
    }
    figure.update_layout(base | layout)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(automargin=True, ticks="", title_standoff=8)
    figure.update_yaxes(automargin=True, ticks="", zerolinecolor=_GRID)
    return figure
