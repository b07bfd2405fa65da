"""The README and the pages of docs/, and what stands in them."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.support.paths import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
"""Text of every page by its path from the repository's root."""


class Block(NamedTuple):
    """A fenced block of a page; line: the number of its first line, from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def find_blocks(*languages: str) -> list[Block]:
    """Return the fenced blocks of all pages, those of some languages or all; '' is a block without one."""
    found = []
    for page, text in PAGES.items():
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 2
            found.append(Block(page, line, match[1], match[2]))
    return [block for block in found if not languages or block.language in languages]


def without_blocks(page: str) -> str:
    """Return the text of a page outside its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def inline_code(page: str) -> list[str]:
    """Return what stands in single backticks outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", without_blocks(page))


def read_toys() -> dict[str, str]:
    """Return the files that docs/extending.md shows by their paths, which a comment names in their first line."""
    blocks = [block.text for block in find_blocks("python") if block.page == "docs/extending.md"]
    named = [block.split("\n", 1) for block in blocks]
    return {first.removeprefix("# "): rest for first, rest in named}
