"""Dependencies point one way: main, tools -> trainer -> methods -> {losses, models}; trainer -> datasets."""

import ast
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ROOMS = {
    "main": {"trainer", "methods", "losses", "models", "datasets", "utils"},
    "tools": {"trainer", "methods", "losses", "models", "datasets", "utils"},
    "trainer": {"methods", "losses", "models", "datasets", "utils"},
    "methods": {"losses", "models", "utils"},
    "losses": {"utils.upsampling"},
    "models": {"utils.config.section", "utils.upsampling"},
    "datasets": {"utils"},
    "utils": set[str](),
}
"""What a room may import of the others, itself aside; a room that is not there yet has no module to ask."""

PACKAGES = {"losses": {"torch"}, "models": {"torch", "timm", "pydantic"}}
"""All that rooms of plain tensors may import from outside, the standard library aside."""

DISTRIBUTED = {"torch.distributed", "utils.distributed"}


def modules_of(*rooms: str) -> list[str]:
    """Return the rooms' modules as paths relative to the root."""
    paths = [path for room in rooms for path in (ROOT / f"{room}.py", *(ROOT / room).rglob("*.py"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths if path.exists())


def room_of(module: str) -> str:
    """Return the room of a module, given by its path or its dotted name."""
    return module.partition("/")[0].partition(".")[0]


def imported_names(module: Path, root: Path) -> set[str]:
    """Return the dotted names that a module imports anywhere in it, relative imports resolved below root."""
    package = module.relative_to(root).parent.parts
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `..` from a top-level package leaves it, to a neighbour.
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" if source else alias.name for alias in node.names}
    return names


def is_within(name: str, allowed: set[str]) -> bool:
    """Whether a dotted name is one of those allowed, or below one."""
    return any(f"{name}.".startswith(f"{other}.") for other in allowed)


def test_every_form_of_import_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "losses" / "inner" / "example.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import json, torch.nn.functional as F\n"
        "from timm.layers import DropPath\n"
        "from . import sibling\n"
        "from ..reduction import mean_or_zero\n"
        "from ...trainer import run\n"
        "def late():\n"
        "    from utils import config\n"
    )
    assert imported_names(module, tmp_path) == {
        "json",
        "torch.nn.functional",
        "timm.layers.DropPath",
        "losses.inner.sibling",
        "losses.reduction.mean_or_zero",
        "trainer.run",
        "utils.config",
    }


def test_a_name_is_within_a_package_and_not_within_one_that_it_only_begins_like() -> None:
    assert is_within("torch.distributed", {"torch"})
    assert is_within("torch", {"torch"})
    assert not is_within("torchvision.ops", {"torch"})
    assert not is_within("utils.config", {"utils.config.section"})


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - {"methods"}))
def test_a_room_is_there_to_be_read(room: str) -> None:
    assert modules_of(room)


@pytest.mark.parametrize("module", modules_of(*ROOMS))
def test_a_module_imports_of_other_rooms_only_what_the_arrows_allow(module: str) -> None:
    room = room_of(module)
    of_rooms = {name for name in imported_names(ROOT / module, ROOT) if room_of(name) in {*ROOMS, "tests"}}
    wrong = {name for name in of_rooms if not is_within(name, ROOMS[room] | {room})}
    assert not wrong, f"{module} imports {sorted(wrong)}; {room} may import {sorted(ROOMS[room])}"


@pytest.mark.parametrize("module", modules_of(*PACKAGES))
def test_losses_and_models_import_torch_and_little_else_from_outside(module: str) -> None:
    room = room_of(module)
    outside = {
        name
        for name in imported_names(ROOT / module, ROOT)
        if room_of(name) not in {*ROOMS, *sys.stdlib_module_names}
    }
    wrong = {name for name in outside if not is_within(name, PACKAGES[room])}
    assert not wrong, f"{module} imports {sorted(wrong)}; {room} may import {sorted(PACKAGES[room])}"


@pytest.mark.parametrize("module", modules_of("datasets", "losses", "models"))
def test_data_sets_losses_and_models_know_nothing_of_other_processes(module: str) -> None:
    wrong = {name for name in imported_names(ROOT / module, ROOT) if is_within(name, DISTRIBUTED)}
    assert not wrong, f"{module} imports {sorted(wrong)}: what ranks do together is the trainer's"
