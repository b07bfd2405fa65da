"""Results of runs that nobody trained: entries of results.json from IoUs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.report.results import build_results, make_step_entry

# ADE20K has a class "step"; a folder's classes may hold anything.
NAMES = ["background", "cat", "step", "a, b"]
HISTORY = [np.array([0.8, 0.6, np.nan]), np.array([0.7, 0.5, np.nan, 0.25])]


def make_entry(names: Sequence[str], history: list[Any], num_base: int) -> dict[str, Any]:
    """Return the entry of the last step of a history of IoUs (K_s,), a step each; `num_base` counts background."""
    num_old = len(history[-2]) if len(history) > 1 else 0
    return make_step_entry(
        step_index=len(history) - 1,
        new_class_names=names[num_old : len(history[-1])],
        iou_history=history,
        class_names_seen=names[: len(history[-1])],
        num_old=num_old,
        num_new=len(history[-1]) - num_old,
        num_base=num_base,
        num_train_images=100 + len(history),
        num_val_images=30,
        seconds=12.345,
    )


def make_results(names: Sequence[str], history: list[Any], **fields: Any) -> dict[str, Any]:
    """Return the results of a run of these classes and IoUs; fields: what `build_results` takes besides."""
    steps = [make_entry(names, history[: step + 1], len(history[0])) for step in range(len(history))]
    facts = {
        "task": "2-1",
        "setting": "overlap",
        "method": "mbs",
        "dataset": "folder",
        "seed": 3,
        "device": "cpu",
    }
    return build_results(class_names=names, steps=steps, **{**facts, **fields})
