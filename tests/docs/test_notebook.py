"""docs/demo.ipynb runs from its first cell to its last, on a demo that the notebook itself makes small."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "demo.ipynb"


def test_every_cell_runs_and_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("DEMO_QUICK", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook then writes
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(PAGE, as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == [], "the page holds no outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(PAGE.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 5, (
        "two plots, panels, two overlays"
    )
    said = "".join(output.get("text", "") for output in outputs)
    assert "report: " in said
    assert "torch.Size([" in said
    (run,) = tmp_path.glob("*/notebook")
    assert (run / "report.html").is_file()


def test_links_of_the_notebook_lead_to_pages() -> None:
    cells: list[dict[str, Any]] = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((\S+?)\)", text)
    assert len(links) >= 5
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []
