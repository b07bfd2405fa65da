"""How the benchmark measures: repetitions in turns, medians, memory."""

import ctypes
import gc
import re
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Action = Callable[[], object]


def medians(actions: Mapping[str, Action], repetitions: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of every action; they take turns, so that a busy machine slows all of them alike.

    A first round warms up and is not counted, unless a single one is asked for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    num_warm_up = 1 if repetitions > 1 else 0
    for repetition in range(num_warm_up + repetitions):
        for name, action in actions.items():
            synchronise(device)
            started = time.perf_counter()
            action()
            synchronise(device)
            if repetition >= num_warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(action: Action, device: torch.device) -> float | None:
    """Return the MiB that an action needs at once beyond what is there before; None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that is kept for later would hide what is needed
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
        before = _status_kib("VmRSS")
        action()
        return (_status_kib("VmHWM") - before) / 2**10
    except (OSError, ValueError, AttributeError):
        return None


def _status_kib(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise ValueError(field)
    return int(match[1])


def live_bytes(action: Action, device: torch.device) -> int:
    """Return the most bytes of tensors, made by the action, that are alive at once."""
    if device.type == "cuda":
        peak = peak_mib(action, device)
        assert peak is not None
        return round(peak * 2**20)
    with _LiveBytes() as live:
        action()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Sees every operation and adds up the storages that it makes, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in given and id(storage) not in self.alive:
                self._follow(storage)
        self.peak = max(self.peak, self.now)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def freed(_: object) -> None:
            self.now -= size
            self.alive.pop(key, None)

        self.alive[key] = weakref.ref(storage, freed)
        self.now += size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
