"""The folder of a run as code of ours leaves it, without training: for tests of its report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.data import stripes
from utils.images import make_palette
from utils.metrics import iou_per_class
from utils.report.pictures import write_image, write_mask
from utils.report.results import build_results, make_step_entry
from utils.report.run_files import save_confusion, write_task

# A folder's classes may hold anything.
NAMES = ["background", "cat", "</script><b>&", "$x$, y"]
CONFUSIONS = [
    np.array([[60, 20, 0], [10, 30, 0], [0, 0, 5]]),
    np.array([[60, 0, 0, 15], [20, 10, 0, 10], [5, 0, 0, 5], [0, 0, 0, 30]]),
]


def write_run(
    folder: Path, names: Sequence[str], confusions: Sequence[npt.NDArray[np.int64]], image_size: int = 12
) -> Path:
    """Write the folder of a run whose steps ended with these confusion matrices, with two images; return it."""
    num_seen = [0, *map(len, confusions)]
    history: list[Any] = []
    entries, lines = [], []
    for step, confusion in enumerate(confusions):
        old, seen = num_seen[step], num_seen[step + 1]
        history.append(iou_per_class(confusion))
        entries.append(
            make_step_entry(
                step_index=step,
                new_class_names=names[old:seen],
                iou_history=history,
                class_names_seen=names[:seen],
                num_old=old,
                num_new=seen - old,
                num_base=num_seen[1],
                num_train_images=10 + step,
                num_val_images=2,
                seconds=185.0,
            )
        )
        save_confusion(folder, step, confusion, names[:seen])
        terms = {"cross_entropy": 0.5} if step == 0 else {"cross_entropy": 0.25, "orthogonal": 0.125}
        for iteration in (2 * step, 2 * step + 1):
            line = {"step": step, "iteration": iteration, "epoch": 0, "loss": sum(terms.values()), **terms}
            lines.append(json.dumps(line | {"lr": 0.1, "images_per_second": 9.0}) + "\n")
        lines.append(json.dumps({"step": step, "iteration": 2 * step + 1, "miou_all": 0.5}) + "\n")
    facts: dict[str, Any] = {"task": "2-1", "setting": "overlap", "method": "mbs", "dataset": "folder"}
    results = build_results(class_names=names, steps=entries, seed=0, device="cpu", **facts)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "config.yaml").write_text("task: '<2-1>'\n")
    colours = make_palette(len(names))
    steps = [names[old:seen] for old, seen in itertools.pairwise(num_seen)]
    write_task(folder, "2-1", [*steps, names[num_seen[-1] :]], dict(zip(names, colours, strict=True)))
    shape = {"height": image_size, "width": image_size}
    for index in range(2):
        panel = folder / "panels" / f"image_{index}"
        write_image(panel / "image.jpg", np.full((image_size, image_size, 3), 200, np.uint8))
        write_mask(panel / "ground_truth.png", stripes(0, 1, 2, 255, **shape), colours)
        for step in range(len(confusions)):
            write_mask(panel / f"step_{step}.png", stripes(0, 1, 0, 0, **shape), colours)
        # Step 0 is not scored on the third stripe.
        write_mask(panel / "scored_0.png", stripes(0, 1, 255, 255, **shape), colours)
    return folder
