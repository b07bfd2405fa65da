"""Runs of a sweep under way: side by side, each as soon as its base step is there, and beside other sweeps."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.summary.runs import read_run
from tools.sweeping.base_steps import PlannedRun, own_base
from tools.sweeping.machine import Machine
from tools.sweeping.table import Table
from trainer.stored_config import describe_difference
from utils.config.read import read_yaml
from utils.errors import explain
from utils.lock import LOCK, RunLockedError, find_holder, lock

ROOT = Path(__file__).resolve().parents[2]
CLAIM = ".sweep.lock"
"""Held in a run's folder by the sweep that has started it, from before the run holds its own lock."""
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class Entry:
    """One run and where it stands: 'waits', 'runs', 'finished' or 'failed', and what there is to say of that."""

    run: PlannedRun
    state: str = "waits"
    told: str = ""
    since: float = 0.0
    place: int = -1
    process: "subprocess.Popen[bytes] | None" = None
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.config.log


def is_finished(run: PlannedRun) -> bool:
    """Whether a run has learned its whole task; raises ValueError where its folder holds another or a damaged run."""
    if not (run.config.run_dir / "config.yaml").is_file():
        return False
    found = read_run(run.config.run_dir)
    theirs = read_yaml(run.config.run_dir / "config.yaml")
    difference = describe_difference(run.config.model_dump(mode="json"), theirs)
    if difference:
        raise ValueError(difference)
    return found.is_complete


class Runner:
    """Starts what has not finished, as many at a time as the machine has places for.

    keep_going: whether others start after one has failed.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        machine: Machine,
        keep_going: bool,
        tell: Callable[[str], object] = lambda text: print(text, flush=True),
    ) -> None:
        self.entries = [Entry(run) for run in runs]
        self.machine = machine
        self.keep_going = keep_going
        self.received = 0
        self.is_alone = len(machine.places) == 1
        self.table = Table(self.entries, machine, tell)

    @property
    def running(self) -> list[Entry]:
        """Runs that this sweep has started and that have not ended."""
        return [entry for entry in self.entries if entry.process is not None]

    def run(self) -> list[str]:
        """Run all and return the names of those that failed.

        Raises SystemExit after SIGTERM, which is passed on, and after Ctrl-C, which the terminal sends to the runs as
        well, once they have saved and ended.
        """
        with self._listening():
            while True:
                self._look()
                if not self._has_more():
                    break
                self._wait()
        self.table.end()
        failed = [entry for entry in self.entries if entry.state == "failed"]
        if self.table.is_drawn:
            for entry in failed:
                self._complain(entry)
        if self.received:
            raise SystemExit(128 + self.received)
        return [entry.name for entry in failed]

    def _has_more(self) -> bool:
        is_over = bool(self.received) or (
            not self.keep_going and any(e.state == "failed" for e in self.entries)
        )
        return bool(self.running) or (not is_over and any(entry.state == "waits" for entry in self.entries))

    def _look(self) -> None:
        """Note what has ended, and start what can be started."""
        for entry in self.running:
            assert entry.process is not None
            code = entry.process.poll()
            if code is not None:
                entry.process = None
                entry.held.close()
                self._end(entry, "finished" if code == 0 else "failed", self._reason(entry, code))
        for entry in self.entries:
            is_over = self.received or (
                not self.keep_going and any(e.state == "failed" for e in self.entries)
            )
            if is_over or len(self.running) == len(self.machine.places):
                break
            if entry.state == "waits":
                self._start_if_ready(entry)
        self.table.show()

    def _reason(self, entry: Entry, code: int) -> str:
        return "" if code == 0 or self.is_alone else f"exit code {code}; {console(entry.run)} says why"

    def _end(self, entry: Entry, state: str, told: str) -> None:
        entry.state, entry.told = state, told
        if state == "failed" and not self.table.is_drawn:
            self._complain(entry)

    def _complain(self, entry: Entry) -> None:
        """Say why a run has failed, where it has not said so itself."""
        if entry.told:
            print(f"main.sh: {entry.name}: {entry.told}", file=sys.stderr, flush=True)
        if not self.keep_going:
            print(f"main.sh: {entry.name} failed; mend it and rerun", file=sys.stderr, flush=True)

    def _start_if_ready(self, entry: Entry) -> None:
        run = entry.run
        try:
            if not entry.told and is_finished(run):
                self._end(entry, "finished", "before")
                return
            waits_for = self._waits_for(run)
            if waits_for is not None:
                entry.told = waits_for
                return
            entry.held.enter_context(lock(run.config.run_dir, CLAIM))
            if is_finished(run):  # elsewhere, meanwhile
                entry.held.close()
                self._end(entry, "finished", "before")
                return
        except RunLockedError:  # by another sweep, a moment ago; the next look says by which
            return
        except (ValueError, OSError) as error:
            entry.held.close()
            self._end(entry, "failed", explain(error))
            return
        self._start(entry)

    def _waits_for(self, run: PlannedRun) -> str | None:
        """What a run has to wait for, None if for nothing; raises ValueError where it will not come."""
        for name, where in ((CLAIM, " in another sweep"), (LOCK, "")):
            holder = find_holder(run.config.run_dir, name)
            if holder:
                return f"under way{where}, {holder}"
        base = run.config.init_from
        maker = next((e for e in self.entries if base == str(own_base(e.run.config))), None)
        if maker is None or maker.run is run or Path(str(base)).exists():
            return None
        if maker.state in ("finished", "failed"):
            raise ValueError(
                f"its base step is missing, as {maker.name} has {maker.state} without it: {base}"
            )
        return f"waits for the base step of {maker.name}"

    def _start(self, entry: Entry) -> None:
        taken = {other.place for other in self.running}
        entry.place = next(place for place in range(len(self.machine.places)) if place not in taken)
        entry.state, entry.told, entry.since = "runs", "", time.monotonic()
        self.table.started(entry)
        environment = {**os.environ, **self.machine.places[entry.place]}
        command = [*self.machine.command, *entry.run.arguments]
        if self.is_alone:
            entry.process = subprocess.Popen(command, cwd=ROOT, env=environment)
        else:
            with console(entry.run).open("ab") as output:
                entry.process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
        # One that came while the run was being started was not passed on to it.
        if self.received == signal.SIGTERM:
            entry.process.send_signal(signal.SIGTERM)

    def _wait(self) -> None:
        """Wait for a moment; no longer than a run that is alone lasts."""
        processes = [entry.process for entry in self.running if entry.process is not None]
        if not processes:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            return
        with suppress(subprocess.TimeoutExpired):
            processes[0].wait(SECONDS_BETWEEN_LOOKS)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.received = number
        for entry in self.running if number == signal.SIGTERM else ():
            assert entry.process is not None
            entry.process.send_signal(number)


def console(run: PlannedRun) -> Path:
    """Return the file that takes what a run says, where several say something at once."""
    return run.config.run_dir / "console.txt"
