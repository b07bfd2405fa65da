"""How the runs of a sweep share one machine: how many at a time, on which GPUs, and the command of each."""

import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

CORES_A_RUN = 4
"""Of `JOBS=auto` on a machine without a GPU."""


class Machine(NamedTuple):
    """Runs at a time, processes of each, and the variables of the environment that each place gives to its run."""

    command: list[str]
    processes: int
    places: list[dict[str, str]]

    def describe_place(self, place: int) -> str:
        """Return where a run is that has this place."""
        gpus = self.places[place].get("CUDA_VISIBLE_DEVICES")
        return f"GPU {gpus}" if gpus else f"place {place + 1} of {len(self.places)}"


def find_machine(environment: Mapping[str, str], jobs: str) -> Machine:
    """Return how runs start here. jobs: how many at a time, or 'auto', as many as there are GPUs (or cores) for.

    The environment says NUM_GPUS (processes of a run, one a GPU), PORT, CUDA_VISIBLE_DEVICES and PYTHON. Raises
    ValueError.
    """
    if jobs != "auto" and (not jobs.isdecimal() or int(jobs) == 0):
        raise ValueError(f"JOBS, --jobs: found {jobs!r}; give a number of runs at a time, or auto")
    python = environment.get("PYTHON") or "python"
    asked = processes_asked_for(environment)
    if jobs == "1" and asked:
        return Machine(launcher(python, asked, environment.get("PORT")), asked, [{}])
    num_gpus = count_gpus(python)
    if jobs == "auto":
        processes = asked or 1
        num_jobs = max(1, num_gpus // processes if num_gpus else (os.cpu_count() or 1) // CORES_A_RUN)
    else:
        num_jobs = int(jobs)
        processes = asked or max(1, num_gpus // num_jobs)
    if num_jobs > 1 and environment.get("PORT"):
        raise ValueError("PORT: several runs at a time take free ports each; leave PORT out, or set JOBS=1")
    if num_gpus and num_jobs * processes > num_gpus:
        raise ValueError(
            f"JOBS × NUM_GPUS: {num_jobs} runs at a time on {processes} GPUs each, but {num_gpus} GPUs are here; lower "
            "one of them"
        )
    command = launcher(python, processes, environment.get("PORT"))
    return Machine(command, processes, share(environment, num_jobs, processes, num_gpus))


def processes_asked_for(environment: Mapping[str, str]) -> int:
    """Return how many processes NUM_GPUS gives a run, 0 where it says nothing; raises ValueError."""
    asked = environment.get("NUM_GPUS", "")
    if asked and (not asked.isdecimal() or int(asked) == 0):
        raise ValueError(f"NUM_GPUS: found {asked!r}; give a number of processes a run, one a GPU")
    return int(asked or 0)


def share(
    environment: Mapping[str, str], num_jobs: int, processes: int, num_gpus: int
) -> list[dict[str, str]]:
    """Return the variables of each place: GPUs of its own, or on the CPU its part of the cores as threads."""
    if num_jobs == 1:
        return [{}]
    if num_gpus:
        named = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))
        gpus = named.split(",")[:num_gpus]
        cuts = range(0, num_jobs * processes, processes)
        return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[cut : cut + processes])} for cut in cuts]
    threads = max(1, (os.cpu_count() or 1) // (num_jobs * processes))
    given = environment.get("OMP_NUM_THREADS")
    return [{"OMP_NUM_THREADS": given or str(threads)} for _ in range(num_jobs)]


def count_gpus(python: str) -> int:
    """Return how many GPUs PyTorch sees; raises ValueError where this Python cannot tell."""
    code = "import torch; print(torch.cuda.device_count())"
    try:
        return int(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        raise ValueError(
            f"PYTHON: {python} cannot count GPUs ({told.strip().splitlines()[-1]}); name a Python that has PyTorch"
        ) from error


def launcher(python: str, processes: int, port: str | None) -> list[str]:
    """Return the command that starts main.py; without a port torchrun takes a free one."""
    meet = [f"--master_port={port}"] if port else ["--standalone", "--local-addr=127.0.0.1"]
    # Without the --, argparse of Python 3.11 takes --log for one of torchrun's own options.
    return [python, "-m", "torch.distributed.run", *meet, f"--nproc_per_node={processes}", "--", "main.py"]
