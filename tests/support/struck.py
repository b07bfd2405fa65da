"""main.py in processes that signals strike at moments of their work that are always the same."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import main
from tests.support.cli import LAUNCHER_VARIABLES, find_free_port
from tests.support.loaded import start

TRAINING = "trainer.step.update"
EVALUATION = "trainer.validation.predict"
SAVING = "trainer.learn.save_checkpoint"
THRESHOLDS = "methods.plop.entropy_histogram"


class Strike(NamedTuple):
    """A signal at the start of a call of a function, by the rank whose work it is.

    at: where the function is looked up. call: which of its calls. once: a file that is made with it; where it is there
    already, nothing happens. whom: the process, the group of it and its data workers, or its launcher.
    """

    at: str
    call: int
    number: int
    once: Path
    whom: str = "process"
    rank: int = 0

    def prepare(self) -> None:
        """Let it happen in this process."""
        if os.environ.get("RANK", "0") != str(self.rank):
            return
        module, name = self.at.rsplit(".", 1)
        place = importlib.import_module(module)
        function, calls = getattr(place, name), 0

        def struck(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and not self.once.exists():
                self.once.touch()
                if self.whom == "group":
                    os.killpg(0, self.number)
                else:
                    os.kill(os.getppid() if self.whom == "launcher" else os.getpid(), self.number)
            return function(*args, **kwargs)

        setattr(place, name, struck)


class Forked:
    """A process, and group of processes, of its own that runs main.py, by itself or through a launcher."""

    def __init__(
        self,
        arguments: Sequence[str],
        strikes: Sequence[Strike],
        environment: dict[str, Any],
        launch: LaunchConfig | None = None,
    ) -> None:
        self.stderr = Path(arguments[1]).parent / f"stderr_{os.urandom(4).hex()}"
        self.process = start(run_apart, arguments, strikes, environment, launch, self.stderr)

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Wait for it; return its exit code and what it has written to stderr."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, self.stderr.read_text()
        return code, self.stderr.read_text()


def run_apart(
    arguments: Sequence[str],
    strikes: Sequence[Strike],
    environment: dict[str, Any],
    launch: LaunchConfig | None,
    stderr: Path,
) -> None:
    """What the process of `Forked` does."""
    os.setpgid(0, 0)
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update({name: str(value) for name, value in environment.items()})
    sys.argv = ["main.py", "--device", "cpu", *arguments]
    with Path(os.devnull).open("w") as sys.stdout, stderr.open("w") as sys.stderr:
        os.dup2(sys.stderr.fileno(), 2)
        if launch is None:
            run_struck(strikes)
        else:
            elastic_launch(launch, run_struck)(strikes)


def run_struck(strikes: Sequence[Strike]) -> None:
    """Run main.py in this process with the arguments in sys.argv."""
    for strike in strikes:
        strike.prepare()
    main.main()


def fork_main(arguments: Sequence[str], *strikes: Strike) -> Forked:
    """Start main.py on the CPU without waiting."""
    return Forked(arguments, strikes, {})


def fork_ranks(port: int, arguments: Sequence[str], *strikes: Strike) -> list[Forked]:
    """Start two ranks that meet at `port`, without a launcher that would end one for the other."""
    place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Forked(arguments, strikes, {"RANK": rank, "LOCAL_RANK": rank, **place}) for rank in range(2)]


def run_ranks(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run main.py as two ranks without a launcher, and wait; the exit code is the larger one, stderr that of both."""
    given = [str(argument) for argument in arguments]
    ends = [rank.end() for rank in fork_ranks(find_free_port(), given)]
    code, stderr = max(code for code, _ in ends), "".join(stderr for _, stderr in ends)
    return subprocess.CompletedProcess(["main.py", *given], code, "", stderr)


def fork_launcher(port: int, arguments: Sequence[str], *strikes: Strike, nodes: int = 1) -> Forked:
    """Start what torchrun does on one of `nodes` nodes, two ranks in all, with two restarts.

    One node meets as `--nnodes=1` lets it, several as `--rdzv_backend=c10d`.
    """
    launch = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=2 // nodes,
        run_id="struck",
        rdzv_backend="static" if nodes == 1 else "c10d",
        rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"rank": 0} if nodes == 1 else {},
        local_addr="127.0.0.1",
        max_restarts=2,
        start_method="fork",
    )
    return Forked(arguments, strikes, {}, launch)
