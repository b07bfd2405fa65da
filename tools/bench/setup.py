"""What every row of the benchmark is given, and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import Config, make_config
from utils.distributed import Worker

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """What all rows share. configs: give `step` its models, training and losses; the first, `scaling` and `ddp` too.

    quick: sizes at which every row runs in seconds and the figures mean nothing.
    """

    worker: Worker
    configs: Sequence[Config]
    quick: bool

    @property
    def config(self) -> Config:
        return self.configs[0]

    @property
    def device(self) -> torch.device:
        return self.worker.device

    def repetitions(self, count: int) -> int:
        return 1 if self.quick else count


@dataclass(frozen=True)
class Row:
    """One line: seconds of ours and of its floor.

    logits_alive: tensors of the logits' size alive at once. images_per_s: of an iteration. mfu: the share of the
    device's matrix products that the passes of both networks make of it. total_mib: memory of a GPU in all.
    """

    name: str
    what: str
    ours_s: float
    floor_s: float | None = None
    aim: float | None = None
    peak_mib: float | None = None
    logits_alive: float | None = None
    images_per_s: float | None = None
    mfu: float | None = None
    total_mib: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.floor_s is None else self.ours_s / self.floor_s


def default_configs(quick: bool, overrides: Sequence[str] = ()) -> list[Config]:
    """DeepLabV3-R50 and Segmenter (ViT-B/16), crop 256, batch 4, without ImageNet weights; tiny where `quick`."""
    deeplabv3 = {"backbone": "test_resnet" if quick else "resnet50", "channels": 8 if quick else 256}
    segmenter = {"name": "segmenter"} | (
        {"backbone": "test_vit", "channels": 24}
        if quick
        else {"backbone": "vit_base_patch16_384", "channels": 768}
    )
    return [default_config(model, quick, overrides) for model in (deeplabv3, segmenter)]


def default_config(model: dict[str, Any], quick: bool, overrides: Sequence[str]) -> Config:
    """What the rows need of a config, for a model."""
    values = {
        "task": "15-1",
        "data": {"name": "voc", "num_workers": 0},
        "model": model | {"pretrained": False},
        "train": {
            "batch_size": 2 if quick else 4,
            "crop_size": 32 if quick else 256,
            "num_epochs": 1,
            "lr_base": 1e-3,
            "lr_incremental": 1e-4,
        },
    }
    return make_config(values, Path("benchmark"), overrides)
