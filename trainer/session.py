"""What every part of a run under way has at hand."""

from dataclasses import dataclass
from pathlib import Path

from trainer.config import Config
from trainer.plan import Plan
from utils.distributed import Worker
from utils.logging import RunLog
from utils.signals import Interruption


@dataclass(frozen=True)
class Session:
    """A run's plan, this process among others, the run's log, and whether this process is asked to end."""

    plan: Plan
    worker: Worker
    log: RunLog
    interruption: Interruption

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.plan.config

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.plan.config.run_dir
