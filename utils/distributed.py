"""The process of a run among others: device, rank, and the few collectives the trainer needs."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import RunError

T = TypeVar("T")

_ANSWER_SECONDS = 3.0


@dataclass(frozen=True)
class Worker:
    """One process of a run: its device, its rank, and how many there are."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the console."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """Return x added up over all ranks."""
        if self.world_size > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def largest(self, *values: int) -> list[int]:
        """Return the largest of every rank's first value, second value, ...

        They travel between CPUs (gloo): a GPU goes on computing meanwhile.
        """
        if self.world_size == 1:
            return list(values)
        x = torch.tensor(values)
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
        largest: list[int] = x.tolist()
        return largest

    def gather(self, x: T) -> list[T]:
        """Return x of every rank, a picklable object."""
        if self.world_size == 1:
            return [x]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, x)
        return gathered

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def main_only(self, function: Callable[[], T]) -> T:
        """Run `function` in the main process and return its result, or raise its error, in all of them."""
        if self.world_size == 1:
            return function()
        outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.is_main:
            try:
                outcome = [(function(), None)]
            except Exception as error:
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        result, raised = outcome[0]
        if raised is not None:
            raise raised
        return result  # type: ignore[return-value]


def find_worker(device: str) -> Worker:
    """Return the process that a launcher (torchrun) describes in the environment, before it joins the others.

    device: 'auto' (a GPU where there is one), 'cpu' or 'cuda'. Raises ValueError for cuda without a GPU, and for
    variables that no launcher sets so.
    """
    numbers = {name: _number_of(name) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE")}
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank, local_size = numbers["LOCAL_RANK"] or 0, numbers["LOCAL_WORLD_SIZE"] or 1
    if use_gpu and local_size > torch.cuda.device_count():
        raise ValueError(
            f"--nproc_per_node: {local_size} processes, but {torch.cuda.device_count()} GPUs on this machine; "
            "start at most one process a GPU"
        )
    if use_gpu and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK: {local_rank} in the environment, but {torch.cuda.device_count()} GPUs on this machine, "
            "counted from 0; start at most one process a GPU"
        )
    target = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    rank, world_size = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank is None or world_size is None:
        return Worker(target)
    if rank >= world_size:
        raise ValueError(
            f"RANK, WORLD_SIZE: {rank} of {world_size} in the environment; ranks count from 0 to WORLD_SIZE - 1; start "
            "the processes with torchrun"
        )
    return Worker(target, rank, world_size)


def _number_of(variable: str) -> int | None:
    """What a launcher says in a variable of the environment; None where it says nothing."""
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal() or (int(text) == 0 and variable.endswith("SIZE")):
        raise ValueError(
            f"{variable}: found {text!r} in the environment, where a launcher (torchrun) writes a number of processes; "
            "unset it, or start with torchrun"
        )
    return int(text)


class RankLostError(RunError, RuntimeError):
    """A rank has died or hangs: the others cannot go on."""

    met_by_all = False


@contextmanager
def process_group(device: str, timeout: float = 1800) -> Iterator[Worker]:
    """Join the process group that the environment describes (`find_worker`); alone without one.

    timeout: seconds that ranks wait for one another. Raises RankLostError naming those that did not come.
    """
    worker = find_worker(device)
    use_gpu = worker.device.type == "cuda"
    if use_gpu:
        torch.cuda.set_device(worker.device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield worker
        return
    # Tensors on the CPU travel through gloo in any case.
    backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
    patience = timedelta(seconds=timeout)
    store, rank, world_size = _meet(patience)
    # A launcher that restarts the ranks may keep the store, with the addresses of those that died.
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=patience,
        device_id=worker.device if use_gpu else None,
    )
    try:
        yield worker
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RankLostError(_name_lost_ranks(store, worker, timeout)) from error
        raise
    dist.destroy_process_group()


def _meet(patience: timedelta) -> tuple[dist.Store, int, int]:
    """Return the store that all ranks share, this rank, and how many there are; raises ValueError."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
    except (dist.DistError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        if "EADDRINUSE" in reason or "address already in use" in reason.lower():
            reason = "another program uses this port"
        raise ValueError(
            f"MASTER_ADDR, MASTER_PORT: the ranks cannot meet at {place} ({reason}); set a free port (torchrun "
            "--master_port), and the address of the machine of rank 0"
        ) from error
    return store, rank, world_size


def _name_lost_ranks(store: dist.Store, worker: Worker, timeout: float) -> str:
    """Say which ranks do not answer any more: those that do leave a word in the store that all of them share."""
    try:
        store.set(f"alive/{worker.rank}", "")
        # The others come here within the time that their connections take to break.
        time.sleep(_ANSWER_SECONDS)
        lost = [str(rank) for rank in range(worker.world_size) if not store.check([f"alive/{rank}"])]
    except RuntimeError:  # the store itself is gone, which without a launcher rank 0 keeps
        lost = ["0"]
    return (
        f"rank {', '.join(lost) or 'unknown'} of {worker.world_size} has died or has not answered for {timeout:.0f} s "
        "(distributed.timeout); the run ends and the same command continues it from its last save"
    )


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and PyTorch from a key such as (seed, step)."""
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint32)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(seed)
