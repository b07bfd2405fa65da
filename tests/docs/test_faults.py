"""Every row of the fault table names tests that exist."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES
from tests.support.paths import ROOT

ROWS = re.findall(r"^\| (?!fault \|)([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGES["docs/faults.md"], re.MULTILINE)


def test_every_row_names_a_test_and_every_test_exists_once() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(ROWS) >= 29
    for fault, _, tests in ROWS:
        names = re.findall(r"`(test_\w+)`", tests)
        assert names, f"{fault}: no test"
        for name in names:
            found = sum(len(re.findall(rf"^ *def {name}\(", source, re.MULTILINE)) for source in sources)
            assert found == 1, f"{fault}: {found} tests are called {name}"
