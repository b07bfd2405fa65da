"""utils/loading.py: data workers obey no signal but their parent's, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal

from torch.utils.data import Dataset

from tests.support.paths import ROOT
from utils.loading import ReadAhead


class Blocked(Dataset[bool]):
    """Whether signals for all processes of a job leave the process that reads alone."""

    def __getitem__(self, _: int) -> bool:
        return {signal.SIGTERM, signal.SIGINT} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def __len__(self) -> int:
        return 2


def test_a_worker_meets_no_signal_of_the_job_and_obeys_its_parent() -> None:
    assert list(ReadAhead(Blocked(), batch_size=None)) == [False, False]
    iterator = iter(ReadAhead(Blocked(), batch_size=None, num_workers=1))
    assert next(iterator)
    assert not Blocked()[0], "held back while it starts only"
    (worker,) = iterator._workers
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0


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
