"""Processes that begin with PyTorch and our code loaded: reading those anew takes longer than a tiny run.

They are forks of a process that has done nothing but read, and so what tests have done before in this one is no part of
them: a fork of a process that has computed a gradient on a GPU, a fake one too, could compute none.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.support.struck", "trainer.run", "torch.utils.tensorboard"])


def start(function: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Start a process that calls a function of a module."""
    process = _SERVER.Process(target=_call, args=(function, arguments))
    process.start()
    return process


def _call(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # Its own processes, such as data workers, start as everywhere else.
    multiprocessing.set_start_method("fork", force=True)
    function(*arguments)
