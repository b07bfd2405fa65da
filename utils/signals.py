"""SIGTERM and SIGINT (schedulers, Ctrl-C): a training step finishes its iteration and saves before it ends.

Schedulers send them to every process of a job. Those that only read for another one leave them to it.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on the Ctrl-C that the terminal has sent to its processes already: both are one request.
_SAME_REQUEST_SECONDS = 2.0
_SECONDS_BETWEEN_LOOKS = 1.0


class Interruption:
    """Whether this process was asked to end.

    While `deferred`, the first signal is only remembered in `received` (its number, else 0) and the second ends the
    process at once; otherwise any ends it by SystemExit. The exit code is 128 + the signal's number, as in a shell.
    """

    def __init__(self) -> None:
        self.received = 0
        self._deferring = False
        self._since = 0.0

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Handle the signals in this way until the block ends; only the main thread of a process can."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Leave it to the block to look at `received`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring:
            # Where Python swallows the exception (it calls a finaliser), the next iteration ends the run.
            self.received, self._since = number, time.monotonic()
            os.write(2, f"\n{name_of(number)}: ended; the same command goes on from here\n".encode())
            raise SystemExit(128 + number)
        if not self.received:
            self.received, self._since = number, time.monotonic()
            # Not print: it may have been interrupted itself.
            os.write(2, f"\n{name_of(number)}: finishing the iteration, then saving\n".encode())
        elif time.monotonic() - self._since > _SAME_REQUEST_SECONDS:
            os._exit(128 + number)


def name_of(number: int) -> str:
    """Return the name of a signal, such as SIGTERM."""
    return signal.Signals(number).name


@contextmanager
def held_back() -> Iterator[None]:
    """Hold the signals back until the block ends: a process started in it never meets them, not even as it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(_: int = 0) -> None:
    """Start a process that works for its parent: it obeys no signal but its parent's SIGTERM, and ends with it.

    The work of a process that a scheduler's signal had ended could not be saved by its parent.
    """
    if not hasattr(signal, "sigtimedwait"):  # macOS: only Ctrl-C is left to the parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(started_by: int) -> None:
    """End this process when its parent tells it to, as multiprocessing does at its own end, or is gone."""
    parent = multiprocessing.parent_process()
    while os.getppid() == started_by:
        received = signal.sigtimedwait({signal.SIGTERM}, _SECONDS_BETWEEN_LOOKS)
        if received is not None and parent is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
