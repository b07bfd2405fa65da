"""Dependencies point one way: main, tools -> trainer -> {losses, models, datasets, utils}."""

import ast
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# A part that takes plain tensors: beyond the standard library and its own siblings it may import these only.
ALLOWED = {"losses": {"torch"}, "models": {"torch", "timm"}}
FORBIDDEN = {
    "datasets": {"losses", "models", "trainer", "tools", "main"},
    "utils": {"losses", "models", "trainer", "tools", "main"},
    "trainer": {"tools", "main"},
}


def modules_of(*packages: str) -> list[str]:
    """Return the packages' modules as paths relative to the root."""
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def imported_roots(module: Path, root: Path) -> set[str]:
    """Return the top-level names that a module imports anywhere in it, relative imports resolved below root."""
    package = module.relative_to(root).parent.parts
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            # `..` from a top-level package would leave it, to a neighbour; the empty base shows that as "".
            base = package[: len(package) - node.level + 1]
            names.add(base[0] if base else (node.module or "").partition(".")[0])
    return names


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
    assert imported_roots(module, tmp_path) == {"json", "torch", "timm", "losses", "trainer", "utils"}


@pytest.mark.parametrize("package", [*ALLOWED, *FORBIDDEN])
def test_the_package_is_there_to_be_read(package: str) -> None:
    assert modules_of(package)


@pytest.mark.parametrize("module", modules_of(*ALLOWED))
def test_losses_and_models_import_torch_and_their_siblings_only(module: str) -> None:
    package = module.partition("/")[0]
    allowed = ALLOWED[package] | {package} | sys.stdlib_module_names
    foreign = imported_roots(ROOT / module, ROOT) - allowed
    assert not foreign, f"{module} imports {sorted(foreign)}; allowed: {sorted(ALLOWED[package])}, {package}"


@pytest.mark.parametrize("module", modules_of(*FORBIDDEN))
def test_no_module_imports_what_stands_above_it(module: str) -> None:
    wrong = imported_roots(ROOT / module, ROOT) & FORBIDDEN[module.partition("/")[0]]
    assert not wrong, f"{module} imports {sorted(wrong)}: dependencies point one way"
