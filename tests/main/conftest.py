"""The runs that the tests of main.py look at."""

import pytest

from tests.support.once import made_once, shared_folder
from tests.support.runs import Workplace, furnish


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The runs of tests/support/runs.py, each made when it is first asked for; only copies may be changed."""
    return Workplace(made_once(shared_folder(tmp_path_factory) / "main", furnish))
