"""Every fault of the table in docs/faults.md is answered as the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES
from tests.faults.checkpoint_cases import CASES as CHECKPOINTS
from tests.faults.config_cases import CASES as CONFIGS
from tests.faults.data_cases import CASES as DATA
from tests.faults.place import Case, Place, prepare_runs
from tests.faults.table import render
from tests.faults.tool_cases import CASES as TOOLS
from tests.support.once import made_once, shared_folder

CASES = [*DATA, *CONFIGS, *CHECKPOINTS, *TOOLS]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(shared_folder(tmp_path_factory) / "fault_runs", prepare_runs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}"[:60])
def test_a_fault_is_answered_as_the_table_says(case: Case, tmp_path: Path, runs: Path) -> None:
    answer = case.act(Place(tmp_path / "here", runs))
    assert case.now in answer
    assert not re.search(r"Traceback|\[Errno", answer), answer


def test_the_table_in_the_docs_is_that_of_the_cases() -> None:
    found = re.search(r"<!-- faults:.*?-->\n(.*?)<!-- end of faults -->", PAGES["docs/faults.md"], re.DOTALL)
    assert found is not None
    assert found[1] == render(), "put the output of python -m tests.faults.table between the marks"
