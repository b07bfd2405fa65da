"""What a run's folder tells its report, of older runs and of damaged files as well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.documents import load_json
from utils.images import make_palette
from utils.logging import read_metrics
from utils.report.run_files import load_confusion, to_hex
from utils.report.schema import load_results


@dataclass(frozen=True)
class Task:
    """The classes of every step, and the colour (#rrggbb) of every class in learning order."""

    steps: list[list[str]]
    colours: list[str]


def read_results(run_dir: Path) -> dict[str, Any]:
    """Return results.json; raises FileNotFoundError or ValueError naming it."""
    path = run_dir / "results.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a run has a report once its first step is finished")
    results = load_results(path)
    if not results["steps"]:
        raise ValueError(f"{path}: no step is finished")
    return results


def read_task(run_dir: Path, results: Mapping[str, Any]) -> Task:
    """Return task.json; without one, what results.json tells, and the colours of PASCAL VOC in learning order."""
    names = results["class_names"]
    path = run_dir / "task.json"
    if not path.exists():
        steps = [list(step["new_classes"]) for step in results["steps"]]
        to_come = names[sum(map(len, steps)) :]
        return Task([*steps, to_come] if to_come else steps, [to_hex(c) for c in make_palette(len(names))])
    try:
        content = load_json(path)
        steps = [list(map(str, step)) for step in content["steps"]]
        colours = [tuple(bytes.fromhex(content["colours"][name][1:])) for name in names]
        return Task(steps, [to_hex((red, green, blue)) for red, green, blue in colours])
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not the task of this run ({reason}); delete it and rerun") from error


def read_confusions(
    run_dir: Path, steps: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, npt.NDArray[np.int64]], list[str]]:
    """Return the confusion matrix of every step that has one; second come the problems met, a line each."""
    confusions, problems = {}, []
    for index, step in enumerate(steps):
        try:
            matrix = load_confusion(run_dir, index)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        if len(matrix) == len(step["per_class_iou"]):
            confusions[index] = matrix
        else:
            problems.append(
                f"confusion/step_{index}.csv: {len(matrix)} classes, results.json has {len(step['per_class_iou'])}"
            )
    return confusions, problems


def read_training(run_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what metrics.jsonl says of the training; second come the problems met, a line each."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return [], []
    lines, damaged = read_metrics(path)
    problems = [f"{path}: left out: damaged lines ({', '.join(map(str, damaged))})"] if damaged else []
    return [line for line in lines if "epoch" in line], problems


def read_config(run_dir: Path) -> tuple[str | None, list[str]]:
    """Return the text of config.yaml, None where there is none; second come the problems met, a line each."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return None, []
    try:
        return path.read_text(encoding="utf-8"), []
    except UnicodeDecodeError as error:
        return None, [f"{path}: left out: {error}"]
