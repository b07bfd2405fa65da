"""What a run's folder holds for its researcher: results, plots, the task, and confusion matrices.

Scores are fractions from 0 to 1 in JSON and CSV, percent in what people read (Markdown, plots).
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.files import write_atomic
from utils.report.plots import draw_forgetting, draw_miou_over_steps, draw_per_class_iou
from utils.report.tables import format_csv, format_markdown, to_csv


def write_results(run_dir: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, results.csv and results.md, each replaced as a whole."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(run_dir / "results.json", text + "\n")
    write_atomic(run_dir / "results.csv", format_csv(results))
    write_atomic(run_dir / "results.md", format_markdown(results))


def write_plots(run_dir: Path, results: Mapping[str, Any]) -> None:
    """Write plots/*.png, each replaced as a whole."""
    write_atomic(run_dir / "plots" / "miou_over_steps.png", draw_miou_over_steps(results))
    write_atomic(run_dir / "plots" / "per_class_iou.png", draw_per_class_iou(results))
    write_atomic(run_dir / "plots" / "forgetting.png", draw_forgetting(results))


def write_task(
    run_dir: Path,
    name: str,
    steps: Sequence[Sequence[str]],
    colours: Mapping[str, tuple[int, int, int]],
    **more: Any,
) -> None:
    """Write task.json: the classes of every step, those to come included, the colour of each class, and `more`."""
    task = {
        "task": name,
        "steps": [list(names) for names in steps],
        "colours": {name: to_hex(colour) for name, colour in colours.items()},
        **more,
    }
    write_atomic(run_dir / "task.json", json.dumps(task, indent=2, ensure_ascii=False) + "\n")


def to_hex(colour: tuple[int, int, int]) -> str:
    """Return a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def save_confusion(
    run_dir: Path, step_index: int, confusion: npt.NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Write the pixel counts (K, K) of a step to confusion/step_{t}.csv: rows ground truth, columns prediction.

    Raises ValueError unless there is one name for each class.
    """
    if confusion.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"confusion: expected a row and a column for each of the {len(class_names)} class_names, "
            f"found shape {confusion.shape}"
        )
    header = ["ground truth \\ prediction", *class_names]
    rows = [[name, *counts] for name, counts in zip(class_names, confusion.tolist(), strict=True)]
    write_atomic(_confusion_path(run_dir, step_index), to_csv([header, *rows]))


def load_confusion(run_dir: Path, step_index: int) -> npt.NDArray[np.int64]:
    """The pixel counts (K, K) that `save_confusion` wrote.

    Raises FileNotFoundError for a step without them, ValueError for a file that holds anything else.
    """
    path = _confusion_path(run_dir, step_index)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the confusion matrix of step {step_index} is missing; evaluate that step's checkpoint again"
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        confusion = np.array([[int(count) for count in row[1:]] for row in rows], dtype=np.int64)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: expected whole numbers in rows of one length ({error})") from error
    if confusion.shape != (len(rows), len(rows)):
        raise ValueError(f"{path}: expected as many rows as columns, found shape {confusion.shape}")
    return confusion


def _confusion_path(run_dir: Path, step_index: int) -> Path:
    return run_dir / "confusion" / f"step_{step_index}.csv"
