"""report.html: one file that shows a run, from what its folder holds, without a network.

Of an older run, or one that has not ended, it shows what there is.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from jinja2 import UndefinedError
from plotly.offline import get_plotlyjs

from utils.files import write_atomic
from utils.images import UInt8Array
from utils.metrics import (
    FloatArray,
    forgetting_per_class,
    lost_to_background,
    pixel_flow,
    worst_confusions,
)
from utils.report.figures import draw_classes, draw_curves, draw_flow, draw_miou
from utils.report.page import fill_template
from utils.report.pictures import IGNORED_COLOUR, Panel, read_panels
from utils.report.plots import iou_matrix, run_title
from utils.report.reading import (
    Task,
    read_config,
    read_confusions,
    read_results,
    read_task,
    read_training,
)
from utils.report.results import SCORES
from utils.report.run_files import to_hex
from utils.units import format_duration

TEMPLATE = "html.jinja"
NUM_CONFUSIONS = 12
_PLOT_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    # The first uploads the figure to Plotly's servers, which the page must not offer; the others do nothing here.
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
}


def write_html_report(run_dir: Path) -> Path:
    """Write report.html into a run's folder and return its path.

    Raises FileNotFoundError where no step has been finished, ValueError naming a file that holds something else,
    SaveError. Confusion matrices, images, lines of metrics.jsonl and a config that are damaged are left out and named
    in the report.
    """
    results = read_results(run_dir)
    try:
        text = render(run_dir, results)
    except (KeyError, TypeError, UndefinedError) as error:
        raise ValueError(
            f"{run_dir}: not the files of a run as this version writes them ({type(error).__name__}: {error})"
        ) from error
    write_atomic(run_dir / "report.html", text)
    return run_dir / "report.html"


def render(run_dir: Path, results: Mapping[str, Any]) -> str:
    """Return the page."""
    steps, names = results["steps"], results["class_names"]
    task = read_task(run_dir, results)
    confusions, problems = read_confusions(run_dir, steps)
    panels, damaged = read_panels(run_dir, len(steps))
    problems += damaged
    training, damaged = read_training(run_dir)
    problems += damaged
    config, damaged = read_config(run_dir)
    problems += damaged
    flows = {index: pixel_flow(matrix, num_old(steps, index)) for index, matrix in confusions.items()}
    shown_ids = sorted({int(c) for panel in panels for mask in masks_of(panel) for c in np.unique(mask)})
    # What is not evaluated (255) is no class.
    legend = [(c, names[c], task.colours[c]) for c in shown_ids if c < len(names)]
    legend += [(c, "not evaluated", to_hex(IGNORED_COLOUR)) for c in shown_ids if c == 255]
    return fill_template(
        TEMPLATE,
        name=run_dir.resolve().name,
        title=run_title(results),
        results=results,
        steps=steps,
        duration=format_duration,
        task=task,
        colour_of=dict(zip(names, task.colours, strict=True)),
        scores=SCORES,
        lost_old=float(flows[len(steps) - 1][1, 1]) if len(steps) - 1 in flows else None,
        figures={
            name: to_html(figure, name) for name, figure in draw(results, task, confusions, flows).items()
        },
        curves=to_html(draw_curves(training), "curves") if training else None,
        confused={
            index: describe_confusions(matrix, names, num_old(steps, index))
            for index, matrix in confusions.items()
        },
        legend=legend,
        panels=[describe_panel(panel) for panel in panels],
        colours={c: colour for c, _, colour in legend},
        class_names={c: name for c, name, _ in legend},
        problems=problems,
        contents=list_contents(problems, flows, panels, training),
        config=config,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        plotly=get_plotlyjs(),
    )


def list_contents(
    problems: Sequence[str], flows: Mapping[int, Any], panels: Sequence[Panel], training: Sequence[Any]
) -> list[tuple[str, str]]:
    """Return the sections that the page has, (id, title)."""
    parts = [
        ("problems", "Left out", problems),
        ("task", "Task", True),
        ("scores", "mIoU", True),
        ("per-class", "Every class", True),
        ("shift", "Background shift", flows),
        ("images", "Images", panels),
        ("training", "Training", training),
        ("run", "Run", True),
    ]
    return [(name, title) for name, title, is_there in parts if is_there]


def draw(
    results: Mapping[str, Any],
    task: Task,
    confusions: Mapping[int, npt.NDArray[np.int64]],
    flows: Mapping[int, FloatArray],
) -> dict[str, go.Figure]:
    """Return the figures that come from scores and confusion matrices."""
    steps, names = results["steps"], results["class_names"]
    iou = iou_matrix(results)
    forgetting, lost = np.full_like(iou, np.nan), np.full_like(iou, np.nan)
    for index, step in enumerate(steps):
        num_seen = len(step["per_class_iou"])
        if index > 0:  # at step 0 there is nothing to forget
            known = len(steps[index - 1]["per_class_iou"])
            history = [iou[:num_seen, past] for past in range(index + 1)]
            forgetting[:known, index] = forgetting_per_class(history)[:known]
        if index in confusions:
            lost[:num_seen, index] = lost_to_background(confusions[index])
    first_ids = [len(step["per_class_iou"]) for step in steps[:-1]]
    figures = {
        "miou": draw_miou(steps),
        "classes": draw_classes(names, task.colours, iou, forgetting, lost, first_ids),
    }
    if flows:
        figures["flow"] = draw_flow(list(flows), list(flows.values()))
    return figures


def num_old(steps: Sequence[Mapping[str, Any]], index: int) -> int:
    """How many classes, background included, were known before a step."""
    return len(steps[index - 1]["per_class_iou"]) if index else 0


def describe_confusions(
    confusion: npt.NDArray[np.int64], names: Sequence[str], known: int
) -> list[dict[str, Any]]:
    """Return the worst pairs of a step, with names and kinds instead of ids; `known`: `num_old` of the step."""

    def kind(class_id: int) -> str:
        return "background" if class_id == 0 else "old" if class_id < known else "new"

    return [
        {
            "label": names[pair.label],
            "predicted": names[pair.predicted],
            "kind": f"{kind(pair.label)} → {kind(pair.predicted)}",
            "share": pair.share,
            "cost": pair.cost,
        }
        for pair in worst_confusions(confusion, NUM_CONFUSIONS)
    ]


def masks_of(panel: Panel) -> list[UInt8Array]:
    """Return the ground truth and the predictions that were kept."""
    return [panel.ground_truth, *(mask for mask in panel.predictions if mask is not None)]


def describe_panel(panel: Panel) -> dict[str, Any]:
    """Return a panel as the page's script takes it: image as a data URI, masks as [id, run length, id, ...].

    scored: null where a step's scores are held against the ground truth as it is shown.
    """
    truth = panel.ground_truth
    height, width = truth.shape
    return {
        "id": panel.image_id,
        "width": width,
        "height": height,
        "image": f"data:image/jpeg;base64,{base64.b64encode(panel.image).decode()}",
        "truth": encode_runs(truth),
        "predictions": [None if mask is None else encode_runs(mask) for mask in panel.predictions],
        "scored": [
            None if mask is None or np.array_equal(mask, truth) else encode_runs(mask)
            for mask in panel.scored
        ],
    }


def encode_runs(mask: UInt8Array) -> list[int]:
    """Return a mask (H,W) row by row as [id, run length, id, run length, ...]."""
    pixels = mask.ravel()
    starts = np.flatnonzero(np.diff(pixels, prepend=pixels[0] ^ 1))
    lengths = np.diff(starts, append=len(pixels))
    runs: list[int] = np.column_stack([pixels[starts], lengths]).ravel().tolist()
    return runs


def to_html(figure: go.Figure, name: str) -> str:
    """Return the figure's element and script; the library itself stands in the page once."""
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=_PLOT_CONFIG)
    return text
