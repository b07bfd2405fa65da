"""utils/loading.py: data workers obey no signal but their parent's, and end with it; batches lie in channels_last."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tests.support.paths import ROOT
from utils.loading import ReadAhead, collate_channels_last, tell_unless_left


class Blocked(Dataset[bool]):
    """Whether signals for all processes of a job leave the process that reads alone."""

    def __getitem__(self, _: int) -> bool:
        return {signal.SIGTERM, signal.SIGINT} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def __len__(self) -> int:
        return 2


class Left(Dataset[int]):
    """A worker's thread hands files over; one who asks for one is gone before, the next one gets his."""

    def __getitem__(self, _: int) -> int:
        read, write = os.pipe()
        shared = resource_sharer.DupFd(read)
        address, _ = cast(Any, shared)._id
        Client(address, authkey=multiprocessing.current_process().authkey).close()
        fetched = shared.detach()
        os.write(write, b"7")
        return int(os.read(fetched, 1))

    def __len__(self) -> int:
        return 1


class Numbered(Dataset[tuple[Tensor, int]]):
    """Images (3,4,5) with colours side by side, and their numbers."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.arange(60).add(i).byte().view(4, 5, 3).permute(2, 0, 1), i

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_in_channels_last_hold_what_others_do(num_workers: int) -> None:
    def batches(collate_fn: object) -> list[list[Tensor]]:
        return list(ReadAhead(Numbered(), batch_size=2, num_workers=num_workers, collate_fn=collate_fn))

    for (images, numbers), (expected, order) in zip(
        batches(collate_channels_last), batches(default_collate), strict=True
    ):
        assert torch.equal(images, expected)
        assert torch.equal(numbers, order)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_worker_meets_no_signal_of_the_job_and_obeys_its_parent() -> None:
    assert list(ReadAhead(Blocked(), batch_size=None)) == [False, False]
    iterator = iter(ReadAhead(Blocked(), batch_size=None, num_workers=1))
    assert next(iterator)
    assert not Blocked()[0], "held back while it starts only"
    (worker,) = iterator._workers
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0


def test_a_worker_prints_no_traceback_where_its_parent_ends_in_the_middle_of_a_batch(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert list(ReadAhead(Left(), batch_size=None, num_workers=1)) == [7]
    assert capfd.readouterr().err == ""
    tell_unless_left(ValueError, ValueError("another"), None)
    assert capfd.readouterr().err == "ValueError: another\n"


def test_a_worker_ends_with_a_parent_that_is_killed() -> None:
    read, write = os.pipe()

    def parent() -> None:
        iterator = iter(ReadAhead(Blocked(), batch_size=None, num_workers=1))
        os.write(write, b"." if next(iterator) else b"!")
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    os.close(write)
    assert os.read(read, 1) == b"."
    assert os.read(read, 1) == b"", "the end of the file: no process holds the pipe any more"
    os.close(read)
    process.join()


def test_nothing_reads_through_another_loader() -> None:
    files = [
        path for room in ("trainer", "tools", "utils", "methods") for path in (ROOT / room).rglob("*.py")
    ]
    found = [path.name for path in files if re.search(r"\bDataLoader\b", path.read_text())]
    assert found == ["loading.py"]
