"""What every row of the benchmark is given, and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.config import Config
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
