"""What a run leaves for its researcher: results as JSON, CSV, Markdown and plots, and confusion matrices.

Scores are fractions from 0 to 1 in JSON and CSV, percent in what people read (Markdown, plots, the console).
"""

import csv
import importlib.metadata
import io
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.files import write_atomic
from utils.metrics import CONVENTIONS, FloatArray, class_groups, mean_iou, step_scores
from utils.report.plots import draw_forgetting, draw_miou_over_steps, draw_per_class_iou, run_title
from utils.units import format_duration

# Score of the results → its heading in tables.
GROUPS = {
    "miou_all": "all",
    "miou_old": "old",
    "miou_new": "new",
    "miou_base": "base",
    "miou_incremental": "incremental",
    "hiou": "hIoU",
}
SCORES = {**GROUPS, "forgetting": "forgetting"}
_MIOU_GROUPS = ("all", "old", "new", "base", "incremental")
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "mmcv-lite", "torchmetrics", "pillow")


def make_step_entry(
    *,
    step_index: int,
    new_class_names: Sequence[str],
    iou_history: Sequence[FloatArray],
    class_names_seen: Sequence[str],
    num_old: int,
    num_new: int,
    num_base: int,
    num_train_images: int,
    num_val_images: int,
    seconds: float,
) -> dict[str, Any]:
    """One entry of `steps` in results.json, ready for JSON: names instead of ids, None instead of nan.

    `class_names_seen` names the K entries of `iou_history[-1]`; the counts include background (see `step_scores`);
    `seconds` is training only. Raises ValueError where the lengths differ or a name appears twice.
    """
    iou = iou_history[-1]
    if len(class_names_seen) != len(iou) or len(set(class_names_seen)) != len(iou):
        raise ValueError(
            f"class_names_seen: expected {len(iou)} different names, one for each IoU, "
            f"found {len(class_names_seen)} ({len(set(class_names_seen))} different)"
        )
    scores = step_scores(iou_history, num_old, num_new, num_base)
    without_background = scores.pop("without_background")
    return {
        "step": step_index,
        "new_classes": list(new_class_names),
        **scores,
        "per_class_iou": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(class_names_seen, iou, strict=True)
        },
        "without_background": without_background,
        "groups": {
            convention: _group_entries(
                iou, class_names_seen, class_groups(convention, num_old, num_base, len(iou))
            )
            for convention in CONVENTIONS
        },
        "num_train_images": num_train_images,
        "num_val_images": num_val_images,
        "seconds": round(float(seconds), 1),
    }


def _group_entries(
    iou: FloatArray, class_names: Sequence[str], groups: Mapping[str, range]
) -> dict[str, dict[str, Any]]:
    """For every group the names of the classes that have an IoU, and their mean (None without any)."""
    return {
        group: {
            "classes": [class_names[c] for c in class_ids if not np.isnan(iou[c])],
            "miou": mean_iou(iou, class_ids),
        }
        for group, class_ids in groups.items()
    }


def build_results(
    *,
    task: str,
    setting: str,
    method: str,
    dataset: str,
    class_names: Sequence[str],
    steps: Sequence[Mapping[str, Any]],
    seed: int,
    device: str,
) -> dict[str, Any]:
    """The whole of results.json from the `make_step_entry` of every finished step.

    `class_names` are all of the task, in learning order, background first. `miou_avg` is the mean of `miou_all` over
    the steps so far, None without any.
    """
    finished = [step["miou_all"] for step in steps if step["miou_all"] is not None]
    return {
        "task": task,
        "setting": setting,
        "method": method,
        "dataset": dataset,
        "class_names": list(class_names),
        "steps": [dict(step) for step in steps],
        "miou_avg": sum(finished) / len(finished) if finished else None,
        "seed": seed,
        "device": device,
        **environment(),
    }


def write_results(run_dir: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, results.csv, results.md and plots/*.png, each replaced as a whole."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(run_dir / "results.json", text + "\n")
    write_atomic(run_dir / "results.csv", _format_csv(results))
    write_atomic(run_dir / "results.md", _format_markdown(results))
    write_atomic(run_dir / "plots" / "miou_over_steps.png", draw_miou_over_steps(results))
    write_atomic(run_dir / "plots" / "per_class_iou.png", draw_per_class_iou(results))
    write_atomic(run_dir / "plots" / "forgetting.png", draw_forgetting(results))


def write_task(
    run_dir: Path,
    name: str,
    steps: Sequence[Sequence[str]],
    colours: Mapping[str, tuple[int, int, int]],
) -> None:
    """Write task.json: the classes of every step, those to come included, and the colour of each class."""
    task = {
        "task": name,
        "steps": [list(names) for names in steps],
        "colours": {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in colours.items()},
    }
    write_atomic(run_dir / "task.json", json.dumps(task, indent=2, ensure_ascii=False) + "\n")


def format_table(results: Mapping[str, Any]) -> str:
    """The plain-text table for the console: one line a step, in percent, and the mean of `all` over the steps."""
    rows = [["step", "new classes", *SCORES.values()]]
    rows += [_score_row(step, SCORES) for step in results["steps"]]
    rows.append(["avg", "", _percent(results["miou_avg"])] + [""] * (len(SCORES) - 1))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([f"{run_title(results)} (percent)", lines[0], rule, *lines[1:-1], rule, lines[-1]])


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
    write_atomic(_confusion_path(run_dir, step_index), _to_csv([header, *rows]))


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


def environment() -> dict[str, Any]:
    """What ran: `commit` and `versions` (None for a package that is not installed).

    The commit is that of the repository holding this file, with "-dirty" if tracked files changed; None outside git.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"commit": _git_commit(Path(__file__).resolve().parent), "versions": versions}


def _git_commit(folder: Path) -> str | None:
    # --exclude hides the tags, so that describe always gives the full hash.
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _confusion_path(run_dir: Path, step_index: int) -> Path:
    return run_dir / "confusion" / f"step_{step_index}.csv"


def _to_csv(rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _format_csv(results: Mapping[str, Any]) -> str:
    """One row a step; an empty cell where there is no value."""
    names = results["class_names"]
    counts = ["num_train_images", "num_val_images", "seconds"]
    without = [f"{score}_without_background" for score in GROUPS]
    # ADE20K has a class called "step": the prefix keeps class columns apart from the others.
    header = ["step", "new_classes", *SCORES, *without, *counts, *(f"iou_{name}" for name in names)]
    rows: list[Sequence[object]] = [header]
    for step in results["steps"]:
        row: list[object] = [step["step"], ", ".join(step["new_classes"]), *(step[score] for score in SCORES)]
        row += [step["without_background"][score] for score in GROUPS]
        row += [step[count] for count in counts]
        row += [step["per_class_iou"].get(name) for name in names]
        rows.append(row)
    return _to_csv(rows)


def _format_markdown(results: Mapping[str, Any]) -> str:
    steps = results["steps"]
    per_class = [
        [name, *(_percent(step["per_class_iou"].get(name, np.nan)) for step in steps)]
        for name in results["class_names"]
    ]
    blocks = [
        f"# {run_title(results)}",
        f"Device {results['device']}, commit {results['commit'] or 'unknown'}. IoU in percent; forgetting in points. "
        f"Mean of `all` over the steps: **{_percent(results['miou_avg'])}**.",
        "## Groups",
        "Background counts in all, base and old (at step 0: in new).",
        _markdown_table(
            ["step", "new classes", *SCORES.values()], [_score_row(step, SCORES) for step in steps]
        ),
        "## Groups without background",
        _markdown_table(
            ["step", "new classes", *GROUPS.values()],
            [
                _score_row(
                    {**step["without_background"], "step": step["step"], "new_classes": step["new_classes"]},
                    GROUPS,
                )
                for step in steps
            ],
        ),
        "## Groups as papers count them",
        f"{' / '.join(CONVENTIONS)}: mib leaves background out, plop counts it as the first table does, "
        "mbs counts it in all only.",
        _markdown_table(
            ["step", *_MIOU_GROUPS],
            [[str(step["step"]), *(_by_convention(step, group) for group in _MIOU_GROUPS)] for step in steps],
            num_left=1,
        ),
        "## IoU of every class",
        "Empty: not learned yet. –: the class is absent from labels and predictions, or cannot occur in the labels.",
        _markdown_table(["class", *(f"step {step['step']}" for step in steps)], per_class, num_left=1),
        "## Images and time",
        _markdown_table(
            ["step", "training images", "validation images", "training time"],
            [
                [
                    *(str(step[key]) for key in ("step", "num_train_images", "num_val_images")),
                    format_duration(step["seconds"]),
                ]
                for step in steps
            ],
            num_left=0,
        ),
    ]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 2) -> str:
    """A table whose first `num_left` columns are aligned to the left, the others to the right."""
    rules = [":--" if column < num_left else "--:" for column in range(len(header))]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, rules, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)


def _score_row(step: Mapping[str, Any], scores: Iterable[str]) -> list[str]:
    return [
        str(step["step"]),
        _shorten(step["new_classes"]),
        *(_percent(step[score]) for score in scores),
    ]


def _by_convention(step: Mapping[str, Any], group: str) -> str:
    """A group's mIoU under every convention."""
    return " / ".join(_percent(step["groups"][convention][group]["miou"]) for convention in CONVENTIONS)


def _percent(fraction: float | None) -> str:
    """One decimal; a dash for an empty group, nothing for nan (a class not learned yet)."""
    if fraction is None:
        return "–"
    return "" if np.isnan(fraction) else f"{100 * fraction:.1f}"


def _shorten(names: Sequence[str], width: int = 30) -> str:
    """The names in at most `width` characters where possible: the first of them, and how many there are."""
    whole = ", ".join(names)
    if len(whole) <= width:
        return whole
    ending = f", … ({len(names)})"
    kept = list(names)
    while len(kept) > 1 and len(", ".join(kept) + ending) > width:
        kept.pop()
    return ", ".join(kept) + (ending if len(names) > 1 else "")
