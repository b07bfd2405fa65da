"""Folders of runs as a full VOC or ADE20K run would leave them, with pixel counts that nobody predicted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets import DATASETS
from tests.support.paths import ROOT
from tests.support.results import make_results
from trainer.config import load_config
from utils.metrics import iou_per_class
from utils.report.run_files import save_confusion

LABELLED = 1000
"""Labelled pixels of every class but background."""


def write_finished_run(
    folder: Path,
    hits: Sequence[int],
    *overrides: str,
    num_base: int = 16,
    digests: Sequence[str] = (),
    config: str = "configs/voc.yaml",
) -> Path:
    """Write a run whose later steps have one class each.

    hits: correct pixels of every class, background first. Those missed of 1000 are predicted as background, whose
    labels are all met: IoU is hits / 1000, background's hits / (hits + all missed). num_base: classes of step 0,
    background among them. digests: of every step's images.
    """
    options = load_config(ROOT / config, overrides, log=folder.name)
    names = list(DATASETS[options.data.name].classes or ())
    confusion = np.diag(np.array(hits, dtype=np.int64))
    confusion[1:, 0] = LABELLED - np.array(hits[1:])
    iou = iou_per_class(confusion)
    results = make_results(
        names,
        [iou[:known] for known in range(num_base, len(hits) + 1)],
        task=options.task,
        setting=options.setting,
        method=options.method.name,
        dataset=options.data.name,
        seed=options.seed,
    )
    for step, digest in zip(results["steps"], digests, strict=False):
        step["train_images_sha256"] = digest
    save_confusion(folder, len(hits) - num_base, confusion, names)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(options.to_yaml())
    return folder
