"""Many runs, one after the other or side by side: bash main.sh [SWEEP.yaml] [--jobs N], which starts this.

A sweep file names a config and what to vary: tasks, settings, methods, variants (names with `--set` lists) and seeds;
every combination is a run. Entries of `runs` set any of these again, each for runs of its own; configs/comparison/ and
configs/ablation/ hold examples. Without a file, the environment says what to run (main.sh lists its variables).

Runs whose base steps would be the same share one: the first of them trains it, the others start from its checkpoint
(`init_from`). Which are the same follows from their configs (`trainer.stored_config`) and from what their
methods declare (`base_step`, `same_network_as`); the seed may differ unless BASE=seed. Finished runs are passed over,
runs that were interrupted go on, those under way elsewhere are waited for; those that fail are listed at the end, and
the exit code is 1. With --jobs, runs stand side by side on GPUs of their own; what they say goes to their console.txt.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, field_validator

from tools.sweeping.base_steps import PlannedRun, as_arguments, share_base_steps
from tools.sweeping.machine import Machine, find_machine
from tools.sweeping.runner import ROOT, Runner, is_finished
from tools.sweeping.slurm import write_scripts
from trainer.config import load_config
from utils.arguments import fail, new_parser
from utils.config.read import describe_errors, read_yaml
from utils.errors import RunError, explain

EXAMPLES = """
bash main.sh configs/ablation/voc.yaml
bash main.sh configs/comparison/voc_animals.yaml --dry-run
bash main.sh configs/ablation/voc.yaml --jobs auto
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


def print_commands(runs: Sequence[PlannedRun], machine: Machine) -> list[str]:
    """Print the commands of runs that have not finished, and return the names of those that cannot go on."""
    failed = []
    for run in runs:
        try:
            done = is_finished(run)
        except (ValueError, OSError) as error:
            print(f"main.sh: {run.config.log}: {explain(error)}", file=sys.stderr, flush=True)
            failed.append(run.config.log)
            continue
        command = shlex.join([*machine.command, *run.arguments])
        print(f"# {run.config.log} has finished" if done else command, flush=True)
    return failed


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("bash main.sh", __doc__, EXAMPLES)
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "sweep", type=Path, nargs="?", metavar="SWEEP", help="YAML file; default: what the environment says"
    )
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--jobs",
        metavar="N",
        help="runs at a time, on NUM_GPUS GPUs each; auto: as many as there are GPUs for (or JOBS; default: 1)",
    )
    how.add_argument(
        "--slurm",
        type=Path,
        metavar="FOLDER",
        help="write a script for Slurm a run, and submit.sh; start nothing",
    )
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
        if args.slurm is not None and not dry_run:
            path = write_scripts(args.slurm, runs, [is_finished(run) for run in runs], os.environ)
            print(
                f"{path} submits {len(runs)} runs; options of sbatch may follow it, such as --partition=gpu"
            )
            return 0
        machine = find_machine(os.environ, args.jobs or os.environ.get("JOBS") or "1")
    except (RunError, ValueError, OSError) as error:
        fail(parser, error)
    if dry_run:
        failed = print_commands(runs, machine)
    else:
        failed = Runner(runs, machine, keep_going=os.environ.get("KEEP_GOING") != "0").run()
    if failed:
        print(f"main.sh: failed: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
