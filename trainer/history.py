"""The terms of a step's iterations on their way into metrics.jsonl, and the check that they are numbers."""

import time
from typing import Any

import torch
from torch import Tensor

from trainer.config import Config
from utils.distributed import Worker
from utils.errors import RunError
from utils.logging import RunLog


class NonFiniteLossError(RunError, RuntimeError):
    """A term of the loss is infinite or not a number: the weights from there on are worth nothing."""


class History:
    """Terms of the iterations since the last entry, kept on the device: one transfer an entry, none a step."""

    def __init__(self, step: int, first_iteration: int, config: Config, worker: Worker, log: RunLog) -> None:
        self.step = step
        self.first_iteration = first_iteration
        self.batch_size = config.train.batch_size
        self.worker = worker
        self.log = log
        self.names: list[str] = []
        self.values: list[Tensor] = []
        self.told_epoch = -1
        self.started = self.since = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Terms since the last entry, of all ranks together, and the time spent; every rank calls it."""
        now = time.monotonic()
        return {
            "names": self.names,
            "values": list(self.worker.sum(torch.stack(self.values)).cpu()) if self.values else [],
            "seconds": now - self.started,
            "seconds_since_entry": now - self.since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off; the terms are the main process's now."""
        now = time.monotonic()
        self.names = state["names"]
        device, share = self.worker.device, 1 if self.worker.is_main else 0
        self.values = [share * values.to(device) for values in state["values"]]
        self.started, self.since = now - state["seconds"], now - state["seconds_since_entry"]

    def pause(self, seconds: float) -> None:
        """Leave out time in which the step did not train."""
        self.started += seconds
        self.since += seconds

    def add(self, terms: dict[str, Tensor]) -> None:
        """Remember one iteration's terms (this rank's shares)."""
        self.names = list(terms)
        self.values.append(torch.stack(list(terms.values())))

    def flush(self, iteration: int, epoch: int, lr: float | Tensor, bar: Any) -> None:
        """Write the means since the last entry; raises NonFiniteLossError where a term is not finite."""
        self.worker.meet()
        values = self.worker.sum(torch.stack(self.values)).cpu()
        first = iteration + 1 - len(values)
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            raise NonFiniteLossError(
                f"step {self.step}, iteration {first + int(bad[0, 0])} "
                f"({self.first_iteration + first + int(bad[0, 0])} of the run): {self.names[int(bad[0, 1])]} is "
                f"{float(values[tuple(bad[0])])}; nothing of this step was saved. Lower the learning rate, set "
                "train.clip_grad_norm, or use train.amp bf16 or off"
            )
        seconds = time.monotonic() - self.since
        terms = dict(zip(self.names, values.mean(dim=0).tolist(), strict=True))
        speed = round(len(values) * self.batch_size / seconds, 1)
        curves = {"loss": sum(terms.values()), **terms, "lr": float(lr), "images_per_second": speed}
        self.log.metrics(self.step, self.first_iteration + iteration, curves, epoch=epoch)
        # A terminal of 80 columns has no room for the terms: they are in the log, once an epoch.
        bar.set_postfix_str(f"loss {curves['loss']:.3f}, {speed} images/s", refresh=False)
        if epoch != self.told_epoch:
            self.told_epoch = epoch
            told = ", ".join(f"{name} {value:.4g}" for name, value in curves.items())
            self.log.write(f"step {self.step}, epoch {epoch + 1}, iteration {iteration + 1}: {told}")
        self.values = []
        self.since = time.monotonic()
