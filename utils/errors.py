"""What ends a run that is under way and can be mended by its user."""

from typing import ClassVar


class RunError(Exception):
    """Told in one message, with exit code 2; every other error of a run under way comes with its traceback."""

    met_by_all: ClassVar[bool] = True
    """Whether all ranks raise it alike: then one of them tells it."""


class DataError(RunError, ValueError):
    """A file of data is wrong: the message names it, what was found, what is allowed and what to do."""

    met_by_all = False
