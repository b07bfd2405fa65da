"""Where a step stands, saved while it trains: a run killed at any moment ends as if it had not been."""

import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from datasets.tasks import Step
from methods import Method
from trainer.checkpoint import load_saved, save
from trainer.session import Session
from utils.distributed import Worker
from utils.errors import RunError
from utils.logging import RunLog
from utils.signals import name_of

KEPT = 2
"""Mid-step saves that stay: the last, and the one before it in case that is damaged."""


class ProgressError(RunError, ValueError):
    """No mid-step save of a step can be gone on from."""


class Stateful(Protocol):
    """What changes while a step trains."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


def capture(changing: Mapping[str, Stateful], num_done: int, worker: Worker) -> dict[str, Any]:
    """Return the state of a step after `num_done` of its iterations, the same in all ranks; all of them call it."""
    return {
        "num_done": num_done,
        "changing": {name: item.state_dict() for name, item in changing.items()},
        "random": worker.gather(random_state(worker)),
    }


def restore(changing: Mapping[str, Stateful], state: dict[str, Any], worker: Worker) -> None:
    """Put everything where `capture` found it."""
    try:
        for name, item in changing.items():
            item.load_state_dict(state["changing"][name])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ProgressError(
            f"the mid-step save is of another step or run ({reason}); delete the run's checkpoints/*.iteration_*.pth"
        ) from error
    # With another number of ranks than before a run goes on, if not bit for bit.
    set_random_state(state["random"][min(worker.rank, len(state["random"]) - 1)], worker)


def progress_paths(run_dir: Path, step: int) -> list[Path]:
    """Return the mid-step saves of a step, the newest first."""
    return sorted((run_dir / "checkpoints").glob(f"step_{step}.iteration_*.pth"), reverse=True)


def save_progress(run_dir: Path, step: int, state: dict[str, Any]) -> Path:
    """Write what `capture` returns and drop all mid-step saves of the step but the last two.

    Raises SaveError, the older ones staying as they were.
    """
    path = run_dir / "checkpoints" / f"step_{step}.iteration_{state['num_done']:09d}.pth"
    save(path, state)
    for old in progress_paths(run_dir, step)[KEPT:]:
        old.unlink()
    return path


def load_progress(run_dir: Path, step: int, log: RunLog) -> dict[str, Any] | None:
    """Return the newest mid-step save of a step that is whole, None where there is none.

    Raises ValueError where there are some and all are damaged.
    """
    paths = progress_paths(run_dir, step)
    for path in paths:
        try:
            return load_saved(path, remedy="delete it")
        except ValueError as error:
            log.info(f"warning: {error}")
    if paths:
        raise ProgressError(
            f"{paths[0].parent}: all mid-step saves of step {step} are damaged ({', '.join(p.name for p in paths)}); "
            "delete them to start the step anew"
        )
    return None


def clear_progress(run_dir: Path, step: int) -> None:
    """Remove the mid-step saves of a step that has ended."""
    for path in progress_paths(run_dir, step):
        path.unlink()


class MethodState:
    """The tensors in a method's `state`, among what changes while a step trains."""

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method = method
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        """Return the method's tensors by name."""
        return dict(self.method.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the method's tensors by those of a save, on the step's device."""
        self.method.state = {name: value.to(self.device) for name, value in state.items()}


class MidStepSaves:
    """Saves a step on its way every `save_every` iterations or minutes and where it is interrupted.

    num_done: how many iterations the newest save that is whole has behind it; 0 without one. Raises ValueError where
    there are saves and all are damaged.
    """

    def __init__(self, session: Session, step: Step) -> None:
        every = session.config.save_every
        self.iterations = every if isinstance(every, int) else 0
        self.seconds = 60 * float(every.removesuffix("m")) if isinstance(every, str) else 0.0
        self.session = session
        self.step = step
        self.since = time.monotonic()
        self.found = load_progress(session.run_dir, step.index, session.log)
        self.num_done = 0
        if self.found is not None:
            self.num_done = self.found["num_done"]
            session.log.info(f"step {step.index}: goes on after {self.num_done} iterations")

    def resume(self, changing: Mapping[str, Stateful], num_iterations: int) -> Iterator[int]:
        """Yield the iterations that are left, after putting everything where the save has it.

        changing: by name, all that changes while the step trains. Called when all else has been set up: the save holds
        random states, too, and a number drawn after this call would change them.
        """
        if self.found is not None:
            restore(changing, self.found, self.session.worker)
            self.found = None
        yield from range(self.num_done, num_iterations)

    def after_iteration(self, num_done: int, changing: Mapping[str, Stateful]) -> None:
        """Save if it is time; after an interruption of any rank save in all of them and raise SystemExit."""
        worker, log, run_dir = self.session.worker, self.session.log, self.session.run_dir
        # The clocks of the ranks differ: the main one's counts.
        is_due, received = worker.largest(
            int(worker.is_main and self._is_due(num_done)), self.session.interruption.received
        )
        if is_due or received:
            state = capture(changing, num_done, worker)
            worker.main_only(lambda: save_progress(run_dir, self.step.index, state))
            log.flush()
        if received:
            log.info(
                f"{name_of(received)}: step {self.step.index} was saved after {num_done} iterations; "
                "the same command continues it"
            )
            raise SystemExit(128 + received)

    def _is_due(self, num_done: int) -> bool:
        if self.iterations:
            return num_done % self.iterations == 0
        if self.seconds and time.monotonic() - self.since >= self.seconds:
            self.since = time.monotonic()
            return True
        return False


def random_state(worker: Worker) -> dict[str, Any]:
    """Return the state of every global random number generator of this process, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }
    if worker.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(worker.device)
    return state


def set_random_state(state: dict[str, Any], worker: Worker) -> None:
    """Put the generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if worker.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], worker.device)
