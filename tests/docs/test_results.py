"""Tables of measured results are what the recorded runs give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, Block, find_blocks
from tests.docs.shell import expand
from tests.support.paths import ROOT
from tools import summarize

RESULTS = PAGES["docs/results.md"]
RECORDED = "docs/results/voc_animals.jsonl"
SUMMARIES = [
    block for block in find_blocks("bash") if block.page == "docs/results.md" and RECORDED in block.text
]


@pytest.mark.parametrize("block", SUMMARIES, ids=str)
def test_a_table_is_what_its_command_prints(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = expand(block.text, tmp_path)[-1].argv
    assert argv[:3] == ["python", "-m", "tools.summarize"]
    arguments = argv[3:]
    if "--plot" in arguments:
        arguments[arguments.index("--plot") + 1] = str(tmp_path / "plot.png")
    monkeypatch.chdir(ROOT)
    assert summarize.main(arguments) == 0
    table = "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert table.count("\n") > 10
    assert table in RESULTS


def test_the_tables_have_their_commands() -> None:
    assert len(SUMMARIES) == 3


def read_row(line: str) -> list[str]:
    """Return the cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("method", ["mbs", "dkd", "mib", "ssul", "plop", "ilt", "lwf", "finetune", "joint"])
def test_the_readme_shows_the_figures_of_the_table(method: str) -> None:
    (line,) = re.findall(rf"^\| `{method}` \|.*$", PAGES["README.md"], re.MULTILINE)
    expected = []
    for setting in ("overlap", "disjoint"):
        # The tables that follow have methods of these names in other forms.
        first_tables = RESULTS.partition("### As released")[0]
        (row,) = re.findall(rf"^\| {setting} \| {method} \|.*$", first_tables, re.MULTILINE)
        _, _, _, all_classes, _, _, hiou, forgetting, *_ = read_row(row)
        expected += [all_classes, hiou, forgetting]
    assert read_row(line)[3:] == expected
