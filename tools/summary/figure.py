"""The figure of `tools/summarize.py`: mIoU over steps with bands, and after the last step with error bars."""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tools.summary.groups import Row, mean_and_deviation

_MARKERS = "os^DvP*Xpd"
_ROW_INCHES = 0.24


@mpl.rc_context(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,
    }
)
def draw(rows: Sequence[Row]) -> bytes:
    """PNG: a row has the same colour and marker on both sides; its name stands at its bar."""
    figure = Figure(figsize=(9, max(3.4, 1 + _ROW_INCHES * len(rows))), layout="constrained")
    over_steps, bars = figure.subplots(1, 2)
    names, shared = name_rows(rows)
    figure.suptitle(shared, fontsize=9)
    for index, row in enumerate(rows):
        colour, marker = style(index)
        draw_over_steps(over_steps, row, colour, marker)
        found = row.scores["miou_all"]
        if found is not None:
            mean, deviation = 100 * found[0], 100 * (found[1] or 0)
            bars.barh(index, mean, color=colour, alpha=0.35)
            bars.errorbar(mean, index, xerr=deviation, color=colour, marker=marker, markersize=5, capsize=3)
    over_steps.set(xlabel="step", ylabel="mIoU (percent)", ylim=(0, None))
    over_steps.xaxis.get_major_locator().set_params(integer=True)
    bars.set(xlabel="mIoU after the last step (percent)", xlim=(0, None))
    bars.set_yticks(range(len(rows)), names)
    bars.invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def name_rows(rows: Sequence[Row]) -> tuple[list[str], str]:
    """Return what tells the rows apart, and what all have in common, which is the figure's title."""
    varies = [len(set(parts)) > 1 for parts in zip(*(row.key for row in rows), strict=True)]
    names = [" · ".join(part for part, v in zip(row.key, varies, strict=True) if v) for row in rows]
    common = [part for row in rows[:1] for part, v in zip(row.key, varies, strict=True) if not v]
    return names, " · ".join(common)


def style(index: int) -> tuple[str, str]:
    """Return colour and marker of a row: ten strong colours, then ten pale ones, the markers in another order."""
    palette = mpl.color_sequences["tab20"]
    pale, hue = divmod(index % 20, 10)
    return to_hex(palette[2 * hue + pale]), _MARKERS[(hue + 3 * pale) % len(_MARKERS)]


def draw_over_steps(axes: Axes, row: Row, colour: str, marker: str) -> None:
    """Draw the mean of `all` over a row's steps, and the band of a deviation around it."""
    num_steps = min(len(run.results["steps"]) for run in row.runs)
    found = [mean_and_deviation(row.runs, "miou_all", step) for step in range(num_steps)]
    points = [(step, 100 * f[0], 100 * (f[1] or 0)) for step, f in enumerate(found) if f is not None]
    steps, means, deviations = zip(*points, strict=True) if points else ((), (), ())
    axes.plot(steps, means, marker=marker, markersize=5, linewidth=1.2, color=colour)
    low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
