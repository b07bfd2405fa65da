"""tools/: what commands share is a package; no module uses a command."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

COMMANDS = {f"tools.{path.stem}" for path in (ROOT / "tools").glob("*.py")} - {"tools.__init__"}
MODULES = [*sorted((ROOT / "tools").rglob("*.py")), ROOT / "download_ade20k.py", ROOT / "main.py"]


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere in it, `from a import b` as a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_commands_are_found() -> None:
    assert {"tools.summarize", "tools.record", "tools.fetch", "tools.sweep"} < COMMANDS
    assert set(imported(ROOT / "tools" / "record.py")) >= {"tools.summary.records", "argparse"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_a_command(path: Path) -> None:
    assert COMMANDS.isdisjoint(imported(path))
