"""SIGTERM and SIGINT (schedulers, Ctrl-C): a training step finishes its iteration and saves before it ends."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on the Ctrl-C that the terminal has sent to its processes already: both are one request.
_SAME_REQUEST_SECONDS = 2.0


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


def leave_signals_to_parent(_: int) -> None:
    """Start a data worker so that Ctrl-C, which reaches it too, leaves it to the training process when to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
