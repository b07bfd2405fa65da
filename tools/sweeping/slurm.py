"""A sweep as jobs of Slurm: a script a run, and one that submits them in the order of their base steps."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.sweeping.base_steps import PlannedRun, own_base
from tools.sweeping.machine import processes_asked_for
from utils.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_SAVE = 120

SUBMIT = """\
#!/usr/bin/env bash
# Submits the runs of a sweep; options of sbatch, for all of them, may follow it.
set -euo pipefail
cd "$(dirname "$0")"
"""

JOB = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={processes}
#SBATCH --cpus-per-task={cpus}
#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@{seconds}
# {seconds} s before the time limit the run is told to save, and the job goes back into the queue. A job that is
# preempted goes back by itself (--requeue). Either goes on from its last save. `sbatch --nodes=2` takes more nodes.
cd {root}
told=
trap 'told=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# Later versions of srun do not take the number of CPUs over from the job.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {python} -m torch.distributed.run \\
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node={processes} \\
    --max-restarts=3 --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d \\
    --rdzv_endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))" \\
    -- main.py {arguments} &
run=$!
wait $run
code=$?
if [[ $told ]]; then
    wait $run
    code=$?
    [[ $code == 0 ]] || scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def write_scripts(
    folder: Path, runs: Sequence[PlannedRun], is_finished: Sequence[bool], environment: Mapping[str, str]
) -> Path:
    """Write NAME.sbatch for every run that has not finished, and submit.sh, which is returned.

    A run that starts from the base step of another one waits for the end of that one's job. NUM_GPUS in the environment
    says how many GPUs a run gets (1), PYTHON with what it runs. Raises SaveError, ValueError.
    """
    makers = {str(own_base(run.config)): run.config.log for run in runs}
    waiting = [run for run, done in zip(runs, is_finished, strict=True) if not done]
    numbers = {run.config.log: number for number, run in enumerate(waiting)}
    lines = [SUBMIT]
    folder.mkdir(parents=True, exist_ok=True)
    processes = processes_asked_for(environment) or 1
    for number, run in enumerate(waiting):
        name = run.config.log
        text = JOB.format(
            name=name,
            processes=processes,
            cpus=processes * (1 + run.config.data.num_workers),
            output=shlex.quote(str((folder / f"{name}.txt").absolute())),
            seconds=SECONDS_TO_SAVE,
            root=shlex.quote(str(ROOT)),
            python=shlex.quote(environment.get("PYTHON") or "python"),
            arguments=shlex.join(run.arguments),
        )
        write_atomic(folder / f"{name}.sbatch", text)
        maker = makers.get(str(run.config.init_from))
        # Its end, not its success: the checkpoint may be there, and main.py says so if it is not.
        after = f" --dependency=afterany:$job_{numbers[maker]}" if maker in numbers and maker != name else ""
        lines.append(f'job_{number}=$(sbatch --parsable{after} "$@" {shlex.quote(name + ".sbatch")})\n')
    path = folder / "submit.sh"
    write_atomic(path, "".join(lines))
    path.chmod(0o755)
    return path
