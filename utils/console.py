"""The one progress bar of this code: redrawn on a terminal, and elsewhere a plain line every so often."""

import math
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils.units import format_duration

SECONDS_BETWEEN_LINES = 30.0
"""Where nobody watches; TQDM_MININTERVAL, tqdm's own variable of the environment, says otherwise."""

TRAINING_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left{run}{postfix}"


def check_environment() -> None:
    """Raise ValueError for a TQDM_MININTERVAL that is no number, over which a bar would end in mid-training."""
    given = os.environ.get("TQDM_MININTERVAL")
    try:
        is_number = math.isfinite(float(given or 0))
    except ValueError:
        is_number = False
    if not is_number:
        raise ValueError(f"TQDM_MININTERVAL: found {given!r} in the environment; give seconds, or unset it")


class _Bar(tqdm):
    """A bar for a terminal that also says how long what follows it will take, at the speed so far."""

    to_come: float = 0
    """Units that follow this bar's."""

    @property
    def format_dict(self) -> Any:
        """What tqdm knows, and `run`, the time left of this bar and of what follows, for `bar_format`."""
        state = super().format_dict
        done, elapsed = state["n"] - state["initial"], state["elapsed"]
        left = (state["total"] or 0) - state["n"] + self.to_come
        state["seconds_left_of_run"] = elapsed * left / done if done else None
        known = self.to_come and done
        state["run"] = f", run {tqdm.format_interval(elapsed * left / done)}" if known else ""
        return state


class _Lines(_Bar):
    """A bar for a pipe or a file: whole lines, as carriage returns would fill it."""

    shown_n: float = 0
    shown_at = 0.0
    """Seconds from the start."""

    def display(self, *args: Any, **kwargs: Any) -> None:
        """Write where the work stands, if it is time."""
        interval = float(os.environ.get("TQDM_MININTERVAL") or SECONDS_BETWEEN_LINES)
        if self.format_dict["elapsed"] - self.shown_at >= interval:
            self._write_line()

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """A line that is written stays."""

    def close(self) -> None:
        """Write where the work ended."""
        if not self.disable and self.n > self.shown_n:
            self._write_line()
        super().close()

    def _write_line(self) -> None:
        state = self.format_dict  # whose names are tqdm's
        done, total, elapsed = state["n"], state["total"], state["elapsed"]
        self.shown_n, self.shown_at = done, elapsed
        parts = [f"{done}/{total} ({100 * done // total} %)", f"{format_duration(elapsed)} passed"]
        if state["initial"] < done < total:
            left = elapsed * (total - done) / (done - state["initial"])
            of_run = f" ({format_duration(state['seconds_left_of_run'])} of the run)" if self.to_come else ""
            parts.append(f"about {format_duration(left)} left{of_run}")
        if state["postfix"]:
            parts.append(state["postfix"])
        print(f"{self.desc}: {', '.join(parts)}", file=self.fp, flush=True)


def progress_bar(
    description: str,
    total: int,
    unit: str = "it",
    *,
    over: Iterable[Any] | None = None,
    initial: int = 0,
    to_come: int | None = None,
    shown: bool = True,
) -> "tqdm[Any]":
    """Return a bar on stderr over `total` units, `initial` of them done: for `update` in a with block, or `over` items.

    On a terminal it follows the width of the window; in a pipe, a file or a dumb terminal it is a line every
    SECONDS_BETWEEN_LINES and one at the end. It has no colours, so `NO_COLOR` asks nothing of it.

    to_come: units like these that follow this bar; then it says how long is left of it and of all, and leaves the count
    out, so that bar and postfix share 80 columns.
    """
    check_environment()
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    kind = _Bar if is_terminal else _Lines
    bar = kind(
        over,
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not shown or total == 0,
        leave=None,
        dynamic_ncols=True,
        gui=not is_terminal,  # then the subclass draws
        bar_format=None if to_come is None else TRAINING_FORMAT,
    )
    bar.to_come = to_come or 0
    return bar
