"""The colours of a run's classes: a class keeps that which it has in the checkpoint that the run starts from."""

from collections.abc import Sequence
from typing import Any

from datasets.tasks import Task
from trainer.checkpoint import load_checkpoint
from trainer.config import Config
from trainer.shared_base import base_file
from utils.images import Colour, make_palette


def base_palette(config: Config, task: Task, saved: dict[str, Any]) -> list[Colour]:
    """Return the colours of step 0's classes in the checkpoint of `init_from`; none where the run has no such base.

    saved: what `check_run_dir` returns of the run's own last checkpoint, which has them, too.
    """
    if config.init_from is None:
        return []
    found = saved.get("palette") or load_checkpoint(base_file(config.init_from)).get("palette") or []
    return [(red, green, blue) for red, green, blue in found[: task.steps[0].num_new]]


def choose_palette(own: Sequence[Colour], base: Sequence[Colour]) -> tuple[Colour, ...]:
    """Return the classes' colours: those of the base step, then those of the data set, each once.

    own: the data set's, of all classes in learning order. One that a class of the base step has gives way to one that
    is free. Without a base step all are the data set's.
    """
    colours = list(base)
    for colour in own[len(base) :]:
        free = (c for c in make_palette(256) if c not in colours and c not in own)
        colours.append(next(free) if base and colour in colours else colour)
    return (*colours,)
