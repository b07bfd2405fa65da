"""Many runs, one after the other: bash main.sh [SWEEP.yaml] [--dry-run], which starts this.

A sweep file names a config and what to vary: tasks, settings, methods, variants (names with `--set` lists) and seeds;
every combination is a run. Entries of `runs` set any of these again, each for runs of its own; configs/comparison/ and
configs/ablation/ hold examples. Without a file, the environment says what to run (main.sh lists its variables).

Runs whose base steps would be the same share one: the first of them trains it, the others start from its checkpoint
(`init_from`). Which are the same follows from their configs (`trainer.config.INCREMENTAL_ONLY`) and from what their
methods declare (`base_step`, `same_network_as`); the seed may differ unless BASE=seed. Finished runs are passed over,
runs that were interrupted go on; those that fail are listed at the end, and the exit code is 1.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, field_validator

from tools.summary.runs import read_run
from tools.sweeping.base_steps import PlannedRun, as_arguments, share_base_steps
from trainer.config import describe_difference, load_config
from utils.arguments import fail, new_parser
from utils.config.read import describe_errors, read_yaml
from utils.errors import explain

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """
bash main.sh configs/ablation/voc.yaml
bash main.sh configs/comparison/voc_animals.yaml --dry-run
"""


class Group(BaseModel):
    """Runs of one config: every combination of tasks, settings, methods, variants and seeds.

    None leaves the config's own value, and its name out of the runs' names. variants: `--set` arguments by name, or
    the path of a file that holds them; overrides: `--set` arguments of every run. Paths are relative to the repository.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str
    name: str
    tasks: list[str] | None = None
    settings: list[str] | None = None
    methods: list[str] | None = None
    variants: dict[str, list[str]] | None = None
    seeds: list[StrictInt] | None = None
    overrides: list[str] = Field([], alias="set")

    @field_validator("variants", mode="before")
    @classmethod
    def _read_variants(cls, value: object) -> object:
        variants = read_yaml(ROOT / value) if isinstance(value, str) else value
        for name, sets in variants.items() if isinstance(variants, dict) else ():
            if not isinstance(sets, list) or not all(isinstance(item, str) for item in sets):
                raise ValueError(
                    f"{value + ': ' if isinstance(value, str) else ''}{name}: expected a list of --set arguments, such "
                    "as [method.selective=false]"
                )
        return variants


def read_sweep(path: Path) -> list[Group]:
    """Return the groups of a sweep file; raises FileNotFoundError or ValueError naming file and field."""
    values = read_yaml(path)
    entries = values.pop("runs", [{}])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{path}: runs: expected a list of mappings, each with what its runs have of their own"
        )
    groups = []
    for entry in entries:
        try:
            groups.append(Group.model_validate({"name": path.stem, **values, **entry}))
        except ValidationError as error:
            lines = [line for _, line in describe_errors(error, Group, lambda _: path)]
            raise ValueError("\n".join(lines)) from error
    return groups


def read_environment(environment: Mapping[str, str]) -> list[Group]:
    """Return the groups that the variables of main.sh name."""

    def words(name: str, default: str) -> list[str]:
        return environment.get(name, default).split()

    methods = words("METHODS", environment.get("METHOD") or "mbs")
    settings = words("SETTINGS", "overlap disjoint")
    data = (
        ("voc", "VOC", "./configs/voc.yaml", "19-1 15-5 15-1 10-1", settings),
        ("ade", "ADE", "./configs/ade20k.yaml", "100-50 100-10 50-50", ["overlap"]),
    )
    return [
        Group(
            config=environment.get(f"{prefix}_CONFIG") or config,
            name=name,
            tasks=words(f"{prefix}_TASKS", tasks),
            settings=of_data,
            methods=methods,
        )
        for name, prefix, config, tasks, of_data in data
    ]


def expand(groups: Sequence[Group], environment: Mapping[str, str]) -> list[PlannedRun]:
    """Return the runs of all groups, one that trains a shared base step before those that start from it.

    Raises FileNotFoundError or ValueError naming every run whose config is wrong.
    """
    runs, problems = [], []
    for group in groups:
        for name, arguments in combinations(group, environment):
            try:
                runs.append(plan_run(group.config, name, arguments))
            except ValueError as error:
                problems += [f"{name}: {line}" for line in str(error).splitlines()]
    names = [run.config.log for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"{name}: two runs have this name; give their groups a name each" for name in twice]
    if problems:
        raise ValueError("\n".join(problems))
    return share_base_steps(runs, by_seed=environment.get("BASE") == "seed")


def combinations(group: Group, environment: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of every run of a group and the arguments that make it."""
    variants = group.variants
    seeds: list[Any] | None = environment["SEEDS"].split() if environment.get("SEEDS") else group.seeds
    try:
        extra = shlex.split(environment.get("EXTRA", ""))
    except ValueError as error:
        raise ValueError(f"EXTRA: {environment['EXTRA']}: {error}; quote it as in a shell") from error
    common = [*as_arguments(group.overrides), *extra]
    # Settings before tasks: what shares images stands together.
    choices: list[Sequence[Any] | None] = [
        group.settings,
        group.tasks,
        group.methods,
        None if variants is None else list(variants),
        seeds,
    ]
    for setting, task, method, variant, seed in product(*([None] if c is None else c for c in choices)):
        parts = [group.name, task, setting, method, variant, None if seed is None else f"seed{seed}"]
        name = "_".join(re.sub(r"[^\w.-]+", "_", part).strip("_") for part in parts if part is not None)
        fields = {
            "task": None if task is None else f"'{task}'",
            "setting": setting,
            "method": method,
            "variant": None if variant is None else json.dumps(variant, ensure_ascii=False),
            "seed": seed,
        }
        overrides = [f"{field}={value}" for field, value in fields.items() if value is not None]
        own = [] if variants is None else variants[variant]
        for override in (*own, *group.overrides, *extra):
            field = override.partition("=")[0].strip().removesuffix(".name")
            # The name of the run would tell another value than it has.
            if fields.get(field) is not None:
                raise ValueError(f"{name}: --set {override}: the sweep varies {field} itself; keep one")
        overrides += own
        yield name + environment.get("SUFFIX", ""), [*as_arguments(overrides), *common]


def plan_run(config: str, name: str, arguments: list[str]) -> PlannedRun:
    """Return a run with its resolved config; raises FileNotFoundError or ValueError."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--set", action="append", default=[])
    overrides = parser.parse_known_args(arguments)[0].set
    return PlannedRun(
        load_config(ROOT / config, overrides, log=name), ["--config", config, "--log", name, *arguments]
    )


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


def execute(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code.

    Raises SystemExit after SIGTERM, which is passed on, and after Ctrl-C, which the terminal sends to the run as well,
    once the run has saved and ended.
    """
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        returncode = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
    if received:
        raise SystemExit(128 + received[0])
    return returncode


def launcher(environment: Mapping[str, str]) -> list[str]:
    """Return the command that starts main.py in NUM_GPUS processes; by default one a GPU, or one on the CPU."""
    python = environment.get("PYTHON") or "python"
    num_processes = environment.get("NUM_GPUS")
    if not num_processes:
        count = "import torch; print(max(1, torch.cuda.device_count()))"
        num_processes = subprocess.run(
            [python, "-c", count], capture_output=True, text=True, check=True
        ).stdout.strip()
    port = environment.get("PORT") or "29500"
    # Without the --, argparse of Python 3.11 takes --log for one of torchrun's own options.
    options = [f"--nproc_per_node={num_processes}", f"--master_port={port}", "--"]
    return [python, "-m", "torch.distributed.run", *options, "main.py"]


def sweep(runs: Sequence[PlannedRun], environment: Mapping[str, str], dry_run: bool) -> list[str]:
    """Start every run that has not finished, or print its command, and return the names of those that failed."""
    start, failed = None, []
    for index, run in enumerate(runs, 1):
        name = run.config.log
        try:
            finished = is_finished(run)
        except (ValueError, OSError) as error:
            print(f"main.sh: {name}: {explain(error)}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        if finished:
            print(
                f"# {name} has finished" if dry_run else f"== {name} ({index}/{len(runs)}) has finished",
                flush=True,
            )
            continue
        start = start or launcher(environment)
        command = [*start, *run.arguments]
        if dry_run:
            print(shlex.join(command))
            continue
        print(f"== {name} ({index}/{len(runs)})", flush=True)
        if execute(command) != 0:
            failed.append(name)
            if environment.get("KEEP_GOING") == "0":
                print(f"main.sh: {name} failed; mend it and rerun", file=sys.stderr)
                break
    return failed


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("bash main.sh", __doc__, EXAMPLES)
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "sweep", type=Path, nargs="?", metavar="SWEEP", help="YAML file; default: what the environment says"
    )
    how = parser.add_argument_group("how it runs")
    how.add_argument("--dry-run", action="store_true", help="print the commands (or DRY_RUN=1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    dry_run = args.dry_run or os.environ.get("DRY_RUN", "0") == "1"
    try:
        groups = read_sweep(args.sweep) if args.sweep else read_environment(os.environ)
        runs = expand(groups, os.environ)
    except (ValueError, OSError) as error:
        fail(parser, error)
    failed = sweep(runs, os.environ, dry_run)
    if failed:
        print(f"main.sh: failed: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
