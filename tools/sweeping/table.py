"""What a sweep shows of its runs: a table that is drawn anew where it stands, or a line for every change."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tools.summary.runs import read_run
from tools.sweeping.machine import Machine
from utils.units import format_duration

if TYPE_CHECKING:
    from tools.sweeping.runner import Entry

SECONDS_BETWEEN_DRAWINGS = 2.0
COLUMNS = ("run", "state", "steps", "all", "time")
"""The last column but one is mIoU over all classes after the last step that is there, in percent."""


class Table:
    """All runs of a sweep and where they stand.

    One run at a time speaks for itself, and its start gets a line. Of several a terminal shows the table, which is
    drawn anew; elsewhere every change gets a line, and the table follows at the end.
    """

    def __init__(self, entries: "Sequence[Entry]", machine: Machine, tell: Callable[[str], object]) -> None:
        self.entries = entries
        self.machine = machine
        self.tell = tell
        self.is_alone = len(machine.places) == 1
        self.is_drawn = not self.is_alone and sys.stdout.isatty()
        self.told = dict.fromkeys(range(len(entries)), ("", ""))
        self.drawn_at = -SECONDS_BETWEEN_DRAWINGS
        self.height = 0

    def started(self, entry: "Entry") -> None:
        """A run begins, and may speak before the next look."""
        if self.is_alone:
            self._tell(self.entries.index(entry), "")

    def show(self) -> None:
        """Tell what has changed."""
        if self.is_drawn:
            if time.monotonic() - self.drawn_at >= SECONDS_BETWEEN_DRAWINGS:
                self._draw()
            return
        for index, entry in enumerate(self.entries):
            if self.told[index] == (entry.state, entry.told):
                continue
            if entry.state == "finished" and (entry.told or not self.is_alone):
                self._tell(index, " has finished")
            elif entry.state == "waits" and entry.told:
                self._tell(index, f" {entry.told}")
            elif entry.state == "runs" and not self.is_alone:
                self._tell(index, f" runs, {self.machine.describe_place(entry.place)}")
            self.told[index] = (entry.state, entry.told)

    def end(self) -> None:
        """Show where all runs stand."""
        if self.is_drawn:
            self._draw(everything=True)
        elif not self.is_alone:
            self.tell("\n".join(self.lines()))

    def _tell(self, index: int, text: str) -> None:
        self.tell(f"== {self.entries[index].name} ({index + 1}/{len(self.entries)}){text}")

    def _draw(self, everything: bool = False) -> None:
        size = shutil.get_terminal_size()
        lines = self.lines(None if everything else size.lines - 2)
        up = f"\x1b[{self.height}F\x1b[J" if self.height else ""
        self.tell(up + "\n".join(line[: size.columns - 1] for line in lines))
        self.height, self.drawn_at = len(lines), time.monotonic()

    def lines(self, limit: int | None = None) -> list[str]:
        """Return the table, a line a run; where they are more than `limit`, those that run or failed, and counts."""
        shown = list(self.entries)
        if limit is not None and len(shown) >= limit:
            shown = [entry for entry in shown if entry.state in ("runs", "failed")][: max(0, limit - 2)]
        rows = [COLUMNS, *map(self._row, shown)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        counts = Counter(entry.state for entry in self.entries)
        return [*(line.rstrip() for line in text), ", ".join(f"{counts[state]} {state}" for state in counts)]

    def _row(self, entry: "Entry") -> tuple[str, ...]:
        state = entry.told if entry.state == "waits" and entry.told else entry.state
        if entry.state == "runs":
            state = f"runs, {self.machine.describe_place(entry.place)}"
        steps = score = ""
        try:
            results = read_run(entry.run.config.run_dir).results
            if results["steps"]:
                steps = f"{len(results['steps'])}/{results.get('num_steps') or '?'}"
                miou = results["steps"][-1]["miou_all"]
                score = "" if miou is None else f"{100 * miou:.1f}"
        except (ValueError, OSError):  # before its first step
            pass
        passed = format_duration(time.monotonic() - entry.since) if entry.state == "runs" else ""
        return entry.name, state, steps, score, passed
