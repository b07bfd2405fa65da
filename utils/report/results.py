"""What results.json says: an entry a step, the run as a whole, and what it ran on. Scores are fractions from 0 to 1."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.metrics import (
    CONVENTIONS,
    FloatArray,
    averaged_classes,
    class_groups,
    mean_iou,
    step_scores,
)

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
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "mmcv-lite", "pillow")


def make_step_entry(
    *,
    step_index: int,
    new_class_names: Sequence[str],
    iou_history: Sequence[FloatArray],
    iou_of: Mapping[str, FloatArray] | None = None,
    class_names_seen: Sequence[str],
    num_old: int,
    num_new: int,
    num_base: int,
    num_train_images: int,
    num_val_images: int,
    seconds: float,
) -> dict[str, Any]:
    """One entry of `steps` in results.json, ready for JSON: names instead of ids, None instead of nan.

    `class_names_seen` names the K entries of `iou_history[-1]`; `iou_of` holds the IoUs by convention of `groups`,
    None where all are those; the counts include background (see `step_scores`); `seconds` is training only. Raises
    ValueError where the lengths differ or a name appears twice.
    """
    iou = iou_history[-1]
    if len(class_names_seen) != len(iou) or len(set(class_names_seen)) != len(iou):
        raise ValueError(
            f"class_names_seen: expected {len(iou)} different names, one for each IoU, "
            f"found {len(class_names_seen)} ({len(set(class_names_seen))} different)"
        )
    scores = step_scores(iou_history, num_old, num_new, num_base)
    without_background = scores.pop("without_background")
    iou_of = {name: iou if iou_of is None else iou_of[name] for name in CONVENTIONS}
    others = {
        name: _by_name(class_names_seen, values)
        for name, values in iou_of.items()
        if not np.array_equal(values, iou, equal_nan=True)
    }
    return {
        "step": step_index,
        "new_classes": list(new_class_names),
        **scores,
        "per_class_iou": _by_name(class_names_seen, iou),
        "without_background": without_background,
        "groups": {
            convention: _group_entries(
                convention, values, class_names_seen, class_groups(convention, num_old, num_base, len(iou))
            )
            for convention, values in iou_of.items()
        },
        **({"per_class_iou_of": others} if others else {}),
        "num_train_images": num_train_images,
        "num_val_images": num_val_images,
        "seconds": round(float(seconds), 1),
    }


def _by_name(class_names: Sequence[str], iou: FloatArray) -> dict[str, float | None]:
    return {
        name: None if np.isnan(value) else float(value) for name, value in zip(class_names, iou, strict=True)
    }


def _group_entries(
    convention: str, iou: FloatArray, class_names: Sequence[str], groups: Mapping[str, range]
) -> dict[str, dict[str, Any]]:
    """For every group the names of the classes that are averaged, and their mean (None without any)."""
    entries = {}
    for group, class_ids in groups.items():
        averaged = averaged_classes(convention, group, iou, class_ids)
        entries[group] = {
            "classes": [class_names[c] for c in averaged],
            "miou": mean_iou(iou, averaged),
        }
    return entries


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
    val_images_sha256: str | None = None,
    num_steps: int | None = None,
) -> dict[str, Any]:
    """The whole of results.json from the `make_step_entry` of every finished step.

    `class_names` are all of the task, in learning order, background first. `miou_avg` is the mean of `miou_all` over
    the steps so far, None without any. `val_images_sha256` is the digest of the validation images' ids,
    `num_steps` the number of steps of the task.
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
        "val_images_sha256": val_images_sha256,
        "num_steps": num_steps,
        **environment(),
    }


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
