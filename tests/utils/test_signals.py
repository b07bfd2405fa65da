"""utils/signals.py: the first signal waits for the iteration, the second ends the process."""

from __future__ import annotations

import os
import signal

import pytest

from utils.signals import Interruption


def test_the_second_signal_ends_the_process_at_once_and_one_passed_on_twice_counts_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    clock = iter([0.0, 1.9, 2.1])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    interruption = Interruption()
    with interruption.listen(), interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert (interruption.received, exits) == (signal.SIGINT, [])
        signal.raise_signal(signal.SIGTERM)
    assert exits == [143]
    assert capfd.readouterr().err.count("finishing the iteration") == 1


def test_outside_an_iteration_a_signal_ends_the_process_with_its_exit_code() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption().listen(), pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
