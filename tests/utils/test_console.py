"""utils/console.py and utils/units.py: what a person reads while it runs, and how long and how large things are."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from tqdm import tqdm

from tests.support.paths import ROOT
from utils.console import progress_bar
from utils.units import format_duration, format_size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3599.9, "1 h"),
        (4350, "1 h 12 min"),
        (86399, "1 d"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations_have_the_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_999, "1.0 MB"),
        (3_430_000, "3.4 MB"),
        (9_960_000, "10 MB"),
        (34_000_000, "34 MB"),
        (1_240_000_000, "1.2 GB"),
        (2_500_000_000_000_000, "2,500 TB"),
    ],
)
def test_sizes_are_decimal_with_a_digit_after_the_point_below_ten(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text


class TestOffATerminal:
    def test_a_bar_is_a_line_now_and_then_and_one_at_the_end(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
        with progress_bar("step 0", 400, initial=100) as bar:
            for _ in range(100):
                bar.update()
            bar.start_t -= 48
            tqdm.write("a line of the log")
            for _ in range(100):
                bar.update()
            bar.set_postfix(loss="0.500", refresh=False)
        out, err = capsys.readouterr()
        assert out == "a line of the log\n"
        assert err == (
            "step 0: 200/400 (50 %), 48 s passed, about 1 min 36 s left\n"
            "step 0: 300/400 (75 %), 48 s passed, about 24 s left, loss=0.500\n"
        )

    def test_what_is_left_of_the_run_is_told_beside_what_is_left_of_the_bar(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("TQDM_MININTERVAL", "1000")
        with progress_bar("step 0", 400, initial=100, to_come=600) as bar:
            bar.update(100)
            bar.start_t -= 50  # half a second each
            bar.set_postfix_str("loss 0.500, 8.1 images/s", refresh=False)
        assert capsys.readouterr().err == (
            "step 0: 200/400 (50 %), 50 s passed, about 1 min 40 s left (6 min 40 s of the run), "
            "loss 0.500, 8.1 images/s\n"
        )

    def test_the_environment_says_how_often(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("TQDM_MININTERVAL", "1e-9")
        assert list(progress_bar("reading", 2, over="ab")) == ["a", "b"]
        assert capsys.readouterr().err.splitlines()[-1] == "reading: 2/2 (100 %), 0 s passed"

    def test_nothing_to_do_and_a_bar_that_is_not_shown_say_nothing(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert list(progress_bar("nothing", 0, over="")) == []
        assert list(progress_bar("hidden", 1, over="a", shown=False)) == ["a"]
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("to_come", [0, 300_000])
def test_80_columns_hold_bar_time_left_loss_and_speed(monkeypatch: pytest.MonkeyPatch, to_come: int) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("step 10", 19_860, to_come=to_come) as bar:
        bar.update(5_000)
        bar.set_postfix_str("loss 12.345, 1234.5 images/s", refresh=False)
        bar.dynamic_ncols, bar.ncols = False, 80
        bar.start_t -= 10_000  # 2 seconds each
        line = str(bar)
        bar.leave = False
    assert len(line) == 80
    found = re.fullmatch(
        r"step 10:  25%\|(.+)\| (\S+) left(, run (\S+))?, loss 12.345, 1234.5 images/s", line
    )
    assert found is not None
    assert len(found[1]) >= 6, "a bar that can be seen"
    assert (found[2], found[4]) == ("8:15:20", "174:55:20" if to_come else None)


@pytest.mark.parametrize(("term", "redrawn"), [("xterm", True), ("dumb", False)])
def test_a_terminal_has_a_bar_without_colours_and_a_dumb_one_has_lines(term: str, redrawn: bool) -> None:
    code = "from utils.console import progress_bar\nfor _ in progress_bar('reading', 3, over='abc'): pass"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    environment = os.environ | {"TERM": term, "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, cwd=ROOT, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode().replace("\r\n", "\n")
    os.close(ours)
    assert ("\r" in shown) == redrawn
    assert "3/3" in shown.splitlines()[-1]
    assert "\x1b[3" not in shown, "colours"
