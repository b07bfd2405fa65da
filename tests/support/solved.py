"""Runs of methods that solve for their classes over the features of a network, which here is a random one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from tests.support.training import tiny, train
from trainer.checkpoint import checkpoint_path, load_checkpoint

SEEN_WHOLE = ("data.image_size=64", "evaluate.mode=whole", "evaluate.short_side=own")


def ridge_fields(folder: Path, *more: str, backbone: str = "test_resnet") -> list[str]:
    """Fields of a run of ridge whose 'pretrained' weights are random ones in a file of `folder`.

    Images are large enough for cells of every class.
    """
    path = folder / f"{backbone}.pth"
    if not path.is_file():
        torch.manual_seed(0)
        torch.save(timm.create_model(backbone).state_dict(), path)
    stride = [] if backbone == "test_vit" else ["model.output_stride=8"]
    return ["method=ridge", f"model.pretrained={path}", *SEEN_WHOLE, *stride, *more]


def train_ridge(folder: Path) -> Path:
    """Leave a run of ridge in folder/runs/ridge, and return the folder."""
    train(tiny(folder, "ridge", *ridge_fields(folder)))
    return folder


def stored(folder: Path, step: int, log: str = "ridge") -> dict[str, Any]:
    """The checkpoint of a run in folder/runs."""
    return load_checkpoint(checkpoint_path(folder / "runs" / log, step))
