"""Tables of measured results are what the recorded runs give."""

from __future__ import annotations

import json
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
    assert len(SUMMARIES) == 2


def read_row(line: str) -> list[str]:
    """Return the cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("method", re.findall(r"^\| `(\w+)` \|.*methods/", PAGES["README.md"], re.MULTILINE))
def test_the_readme_shows_the_figures_of_the_table(method: str) -> None:
    (line,) = re.findall(rf"^\| `{method}` \|.*$", PAGES["README.md"], re.MULTILINE)
    expected = []
    for setting in ("overlap", "disjoint"):
        rows = re.findall(rf"^\| {setting} \| {method} \|.*$", RESULTS, re.MULTILINE)
        _, _, _, all_classes, _, _, hiou, forgetting, *_ = read_row(rows[0]) if rows else ["–"] * 8
        expected += [all_classes, hiou, forgetting]
    assert read_row(line)[3:] == expected


def test_the_rates_of_the_tuning_table_are_those_of_the_runs() -> None:
    lines = [json.loads(line) for line in (ROOT / RECORDED).read_text().splitlines()]
    finals = {line["name"]: line["steps"][-1]["miou_all"] for line in lines}
    table = RESULTS.partition("### Tuning")[2].partition("##")[0]
    rows = [read_row(line) for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 16
    for method, *cells in rows:
        scores = []
        for rate, cell in zip(("3.0e-3", "2.0e-4", "2.0e-5"), cells, strict=True):
            names = [f"released_overlap_{method}_{rate}_seed0"]
            if method == "mbs":
                names = [f"tuning_{rate}_mbs_seed0", "animals_overlap_mbs_seed0"]
            score = next((finals[name] for name in names if name in finals), None)
            assert cell.strip("*") == ("–" if score is None else f"{100 * score:.1f}")
            scores.append(score)
        best = max(score for score in scores if score is not None)
        chosen = next(i for i, score in enumerate(scores) if score is not None and score >= best - 1e-3)
        assert [cell.startswith("*") for cell in cells] == [i == chosen for i in range(3)]
