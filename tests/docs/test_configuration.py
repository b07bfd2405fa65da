"""The tables of docs/configuration.md are the config's own."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES
from tests.support.ours import OURS
from tools.config_table import config_tables
from trainer.config import Config
from utils.config.section import choice_of

MARKED = r"<!-- config_table:.*?-->\n(.*?)\n<!-- end of config_table -->"


def test_the_tables_are_what_the_tool_prints_of_what_this_repository_holds() -> None:
    names = {name for field in OURS for name in table_of(field)}
    added = names - set().union(*OURS.values())  # by somebody who has a copy
    (tables,) = re.findall(MARKED, PAGES["docs/configuration.md"], re.DOTALL)
    assert tables == config_tables(added), "put the output of python -m tools.config_table between the marks"


def table_of(field: str) -> set[str]:
    """The names that a section of the config can have."""
    choice = choice_of(Config, field)
    assert choice is not None
    assert OURS[field] <= choice.table.keys()
    return set(choice.table)
