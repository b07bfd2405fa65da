"""Which runs of a sweep start from the base step of another one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from methods import METHODS, Method
from trainer.config import Config
from trainer.shared_base import is_address
from trainer.stored_config import INCREMENTAL_ONLY, MAY_DIFFER
from utils.config.fields import flatten, is_below
from utils.config.read import read_yaml


class PlannedRun(NamedTuple):
    """One run: its resolved config, and the arguments of main.py that make it."""

    config: Config
    arguments: list[str]


def as_arguments(overrides: Sequence[str]) -> list[str]:
    """Return the arguments of main.py that set fields of the config."""
    return [argument for override in overrides for argument in ("--set", override)]


def share_base_steps(runs: Sequence[PlannedRun], by_seed: bool) -> list[PlannedRun]:
    """Let runs whose base steps would be the same start from that of one of them, which comes before them.

    It is the first, but where the methods of some add modules or state to the network one of those, so that the base
    step has trained them. Runs that lie on the disk already keep the base step that they have, and the others take
    theirs.
    """
    ordered = []
    for members in group_by_base_step(runs, by_seed):
        begun = {run.config.log: base for run in members if (base := begun_from(run.config)) is not None}
        candidates = [run for run in members if run.config.log in begun] or members
        first = max(candidates, key=lambda run: bool(added_by(run.config)))
        shared = begun.get(first.config.log, own_base(first.config))
        for run in (first, *(run for run in members if run is not first)):
            base = begun.get(run.config.log, shared)
            if run.config.init_from is None and base != own_base(run.config):
                config = run.config.model_copy(update={"init_from": str(base)})
                run = PlannedRun(config, [*run.arguments, *as_arguments([f"init_from={base}"])])
            ordered.append(run)
    return ordered


def group_by_base_step(runs: Sequence[PlannedRun], by_seed: bool) -> list[list[PlannedRun]]:
    """Return the runs in groups of equal base steps.

    What a method adds to the network leaves the network as it is: runs that add nothing join the first that add
    something.
    """
    groups: dict[str, dict[str, list[PlannedRun]]] = {}
    for run in runs:
        by_addition = groups.setdefault(base_step(run.config, by_seed), {})
        by_addition.setdefault(added_by(run.config), []).append(run)
    ordered = []
    for by_addition in groups.values():
        without = by_addition.pop("", [])
        first, *others = by_addition.values() or [[]]
        joined = {run.config.log for run in [*without, *first]}
        ordered += [[run for run in runs if run.config.log in joined], *others]
    return ordered


def added_by(config: Config) -> str:
    """Return what adds modules or state to a network that another class would train alike; '' for nothing."""
    base = METHODS[config.method.name].base_step
    return describe_base(base, config) if base.same_network_as else ""


def describe_base(base: type[Method], config: Config) -> str:
    """Return a class that trains base steps and its fields in a config, as a text."""
    values = config.method.model_dump(mode="json")
    options = {name: values.get(name) for name in base.Options.model_fields if name != "name"}
    return json.dumps([base.__module__, base.__qualname__, options])


def own_base(config: Config) -> Path:
    """Return the checkpoint of a run's own base step."""
    return config.run_dir / "checkpoints" / "step_0.pth"


def begun_from(config: Config) -> Path | str | None:
    """Return the checkpoint that a run on the disk takes its base step from, its own perhaps; None if it is not there.

    Raises ValueError or OSError naming a config.yaml that cannot be read.
    """
    path = config.run_dir / "config.yaml"
    if not path.is_file():
        return None
    base = read_yaml(path).get("init_from")
    return own_base(config) if not base else base if is_address(base) else Path(base)


def base_step(config: Config, by_seed: bool) -> str:
    """Return what decides over the network's weights after a run's base step."""
    values = config.model_dump(mode="json")
    left_out = (*MAY_DIFFER, *INCREMENTAL_ONLY, *(() if by_seed else ("seed",)))
    kept = {field: value for field, value in flatten(values) if not is_below(field, left_out)}
    base = METHODS[config.method.name].base_step
    kept["trained_by"] = describe_base(base.same_network_as or base, config)
    kept["init_from"] = values["init_from"]
    return json.dumps(kept, sort_keys=True)
