"""--help of every program: options in groups, and examples that it takes itself."""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess

import pytest

from tests.support.paths import ROOT
from tools import prepare_folder

# Without those that are no programs.
TOOLS = [
    f"tools.{path.stem}"
    for path in sorted((ROOT / "tools").glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


def test_the_tools_are_found() -> None:
    assert {"tools.predict", "tools.evaluate", "tools.export", "tools.summarize", "tools.doctor"} < set(TOOLS)


def check_help(parser: argparse.ArgumentParser, own: str) -> None:
    """Fail unless the options are grouped and the examples are calls of `own` that the parser takes."""
    text = parser.format_help()
    # Under 'options', argparse's own heading, lies --help alone; nothing under 'positional arguments'.
    options = text.partition("options:\n")[2].partition("\n\n")[0]
    assert len(options.splitlines()) == 1
    assert "positional arguments:" not in text
    assert text.startswith(f"usage: {own}")
    examples = text.partition("examples:\n")[2].splitlines()
    assert examples
    for example in examples:
        program = own.split(maxsplit=1)[1]
        before, found, arguments = example.strip().partition(program)
        assert found
        assert before in (
            "python ",
            "bash ",
            "torchrun --nproc_per_node=2 ",
            "torchrun --nproc_per_node=2 -- ",
        )
        parser.parse_args(shlex.split(arguments))


@pytest.mark.parametrize("name", ["main", "download_ade20k", *TOOLS])
def test_help_has_groups_and_examples_that_the_program_takes(name: str) -> None:
    programs = {
        "main": "python main.py",
        "download_ade20k": "python download_ade20k.py",
        "tools.sweep": "bash main.sh",
        "tools.fetch": "python tools/fetch.py",  # before anything is installed
    }
    check_help(importlib.import_module(name).make_parser(), programs.get(name, f"python -m {name}"))


@pytest.mark.parametrize("name", ["labelme", "coco", "cityscapes"])
def test_help_of_a_format_has_groups_and_examples_of_its_own(name: str) -> None:
    (formats,) = (
        a for a in prepare_folder.make_parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    parser = formats.choices[name]
    check_help(parser, f"python -m tools.prepare_folder {name}")
    assert all(f"\n{group}:\n" in parser.format_help() for group in ("input", "output", "how it runs"))


def test_help_of_the_shell_script_has_examples() -> None:
    told = subprocess.check_output(["bash", "download_voc.sh", "--help"], cwd=ROOT, text=True)
    examples = told.partition("examples:\n")[2].splitlines()
    assert examples
    assert all("bash download_voc.sh" in line for line in examples)
