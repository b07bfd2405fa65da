"""The README is short, and its first two commands are what is run."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES, find_blocks
from tests.support.paths import ROOT

README = PAGES["README.md"]


def test_it_has_200_lines_at_most() -> None:
    assert len(README.splitlines()) <= 200


def test_the_first_two_commands_install_and_run_the_demo_and_the_tests() -> None:
    demo, tests = [block.text for block in find_blocks("bash") if block.page == "README.md"][:2]
    assert demo.count("\n") == tests.count("\n") == 1
    assert "main.py --config configs/demo.yaml" in demo
    assert "pytest" in tests


def test_ci_runs_the_second_command() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = re.findall(r'^test_command="(.*)"$', ci, re.MULTILINE)
    assert [block.text for block in find_blocks("bash") if block.page == "README.md"][1] == f"{command}\n"
    assert '-c "$test_command"' in ci


def test_every_method_has_a_row_and_its_file() -> None:
    from methods import METHODS

    rows = dict(re.findall(r"^\| `(\w+)` \|.*?\| `(methods/\w+\.py)` \|", README, re.MULTILINE))
    assert set(rows) <= set(METHODS)
    files = {name: f"{METHODS[name].__module__.replace('.', '/')}.py" for name in rows}
    assert rows == files
    assert len(rows) >= 9
