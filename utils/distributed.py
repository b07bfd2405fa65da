"""The process of a run among others: device, rank, and the few collectives the trainer needs."""

import hashlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from utils.errors import RunError

T = TypeVar("T")

_ANSWER_SECONDS = 3.0
_SECONDS_BETWEEN_LOOKS = 0.05
_NCCL_SECONDS_LATER = 60.0


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
        """Return x added up over all ranks; on GPUs nothing waits here for it (`meet`)."""
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

    def meet(self) -> None:
        """Wait for all ranks between CPUs (gloo), before something that waits for their GPUs.

        There a rank that has died or hangs is named; a GPU (NCCL) would wait for it without a word.
        """
        self.largest(0)

    def take_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the main process's values of these tensors, in place."""
        if self.world_size > 1:
            self.meet()
            for x in tensors:
                dist.broadcast(x, src=0)

    def main_only(self, function: Callable[[], T]) -> T:
        """Run `function` in the main process and return its result, or raise its error, in all of them.

        Like `largest`, this waits between CPUs.
        """
        if self.world_size == 1:
            return function()
        outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.is_main:
            try:
                outcome = [(function(), None)]
            except Exception as error:
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
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
    store = _open_store(worker, patience)
    try:
        store = dist.PrefixStore(agree_on_start(store, worker, patience), store)
        dist.init_process_group(
            backend,
            store=store,
            rank=worker.rank,
            world_size=worker.world_size,
            timeout=patience,
            device_id=worker.device if use_gpu else None,
        )
        if use_gpu and dist.group.WORLD is not None:
            # What waits between CPUs names a rank that hangs; NCCL's watchdog would end the process before it does.
            later = patience + timedelta(seconds=_NCCL_SECONDS_LATER)
            dist.group.WORLD._get_backend(worker.device)._set_default_timeout(later)
        yield worker
    except BaseException as error:
        of_others = isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and "gloo" in str(error)
        )
        try:
            lost = _find_lost_ranks(store, worker) if of_others else []
        finally:
            _leave(use_gpu)
        if lost:
            raise RankLostError(
                f"rank {', '.join(map(str, lost))} of {worker.world_size} has died or has not answered for "
                f"{timeout:.0f} s (distributed.timeout); the run ends and the same command continues it from its last "
                "save"
            ) from error
        raise
    dist.destroy_process_group()


def _leave(use_gpu: bool) -> None:
    """Leave the process group after an error, in which other ranks may be gone."""
    if not dist.is_initialized():
        return
    if use_gpu:
        # To destroy it would be to wait for what NCCL has under way with them.
        distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def _open_store(worker: Worker, patience: timedelta) -> dist.Store:
    """Return the store through which the ranks find each other; raises ValueError."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        if not address or not port.isdecimal() or int(port) >= 2**16:
            raise ValueError("that is no address and port")
        return dist.TCPStore(
            address,
            int(port),
            is_master=worker.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        if "EADDRINUSE" in reason or "address already in use" in reason.lower():
            reason = "another program uses this port"
        raise ValueError(
            f"MASTER_ADDR, MASTER_PORT: the ranks cannot meet at {address}:{port} ({reason}); set a free port "
            "(torchrun --master_port), and the address of the machine of rank 0"
        ) from error


def agree_on_start(store: dist.Store, worker: Worker, patience: timedelta) -> str:
    """Return a name that the ranks of one start have in common, and those of no other start.

    A launcher that restarts ranks keeps the store with what the dead ones left in it, and the launchers of several
    nodes count their restarts each for itself: so every rank draws a name of its own, and all go on once they agree
    on the names of all. Raises RankLostError naming the ranks that do not come.
    """
    ranks = range(worker.world_size)
    drawn, seen = ([f"{what}/{rank}" for rank in ranks] for what in ("drawn", "seen"))
    store.set(drawn[worker.rank], secrets.token_hex(8))
    give_up = time.monotonic() + patience.total_seconds()
    while time.monotonic() < give_up:
        if store.check(drawn):
            name = hashlib.sha256(b" ".join(store.multi_get(drawn))).hexdigest()
            store.set(seen[worker.rank], name)
            if store.check(seen) and set(store.multi_get(seen)) == {name.encode()}:
                return name
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    missing = [str(rank) for rank in ranks if not store.check([drawn[rank]])]
    raise RankLostError(
        f"rank {', '.join(missing) or 'unknown'} of {worker.world_size} has not come within "
        f"{patience.total_seconds():.0f} s (distributed.timeout); start all ranks, with the same MASTER_ADDR and "
        "MASTER_PORT"
    )


def _find_lost_ranks(store: dist.Store, worker: Worker) -> list[int]:
    """Return the ranks that do not answer any more: those that do leave a word in the store that all of them share."""
    try:
        store.set(f"alive/{worker.rank}", "")
        # The others come here within the time that their connections take to break.
        time.sleep(_ANSWER_SECONDS)
        return [rank for rank in range(worker.world_size) if not store.check([f"alive/{rank}"])]
    except RuntimeError:  # the store itself is gone, which without a launcher rank 0 keeps
        return [0]


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and PyTorch from a key such as (seed, step)."""
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint32)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(seed)
