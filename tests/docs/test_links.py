"""What the pages point to is there: other pages, headings, files, modules, tests."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, inline_code, read_toys, without_blocks
from tests.support.paths import ROOT

ROOMS = ("datasets", "losses", "methods", "models", "trainer", "utils", "tests", "tools")
FOLDERS = "|".join((*ROOMS, "configs", "docs"))
MODULES = {path.name for room in ROOMS for path in (ROOT / room).rglob("*.py")}


def headings(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.is_file() or (anchor and anchor not in headings(file.read_text(encoding="utf-8"))):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    paths = re.compile(rf"(?:{FOLDERS})/[\w/.-]+\.\w+|\w+\.sh")
    named = {code for code in inline_code(page) if paths.fullmatch(code) and "NAME" not in code}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    # A table may give the folder once and then the names of its modules.
    modules = {code for code in inline_code(page) if re.fullmatch(r"\w+\.py", code)}
    assert modules - {path.name for path in ROOT.glob("*.py")} - MODULES == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_tool_that_a_page_names_exists(page: str) -> None:
    named = {name for code in inline_code(page) for name in re.findall(r"\btools\.(\w+)", code)}
    assert [name for name in sorted(named) if not (ROOT / "tools" / f"{name}.py").is_file()] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "docs/extending.md"]
)  # toys have fields, too
def test_every_field_that_a_page_names_is_in_the_configuration(page: str) -> None:
    sections = "data|model|train|memory|evaluate|logging|distributed|method"
    pattern = re.compile(rf"(?:--set )?((?:{sections})\.(?!(?:py|json)$)[a-z_]+)(?:[=:].*)?")
    named = {match[1] for code in inline_code(page) if (match := pattern.fullmatch(code))}
    assert [name for name in sorted(named) if name not in PAGES["docs/configuration.md"]] == []


def test_the_map_and_the_readme_lead_to_every_page() -> None:
    pages = {page.removeprefix("docs/") for page in PAGES if re.fullmatch(r"docs/\w+\.md", page)} - {
        "README.md"
    }
    assert {target for target in pages if f"]({target}" not in PAGES["docs/README.md"]} == set()
    assert {target for target in pages if f"](docs/{target}" not in PAGES["README.md"]} == set()


def test_extending_shows_a_whole_file_of_each_kind() -> None:
    assert [path.split("/")[0] for path in read_toys()] == ["losses", "methods", "datasets", "models"]
