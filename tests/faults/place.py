"""Where a fault is tried: a folder with what a user has, and programs called as a user calls them."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml

from tests.support.cli import LAUNCHER_VARIABLES, set_fields, write_tiny_config
from tests.support.data import stripes, write_folder

FOLDER_CLASSES = ("pear", "kiwi", "fig")
FOLDER_FIELDS = ("data.name=folder", "task=[[pear], [kiwi]]", "logging.num_panels=0")


class Case(NamedTuple):
    """A fault: what it is, what is done, and a part of the answer that it gets.

    act: returns what a user is told, or what has come of it where nothing is told.
    """

    kind: str
    name: str
    act: Callable[[Place], str]
    now: str


class Place:
    """A folder for one case. `runs`: a folder with runs that are finished, of which cases take copies."""

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder = folder
        self.runs = runs
        folder.mkdir(parents=True, exist_ok=True)

    # What is there

    def config(self, changes: Mapping[str, Any] | None = None) -> Path:
        """The tiny config on drawn images, its runs in the case's folder."""
        path = write_tiny_config(self.folder)
        if changes:
            path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | dict(changes)))
        return path

    def run(self, name: str = "shapes") -> Path:
        """A copy of a finished run of two steps, in the folder of the runs: 'shapes' or 'folder'."""
        target = self.folder / "runs" / name
        shutil.copytree(self.runs / name, target, dirs_exist_ok=True)
        return target

    def checkpoint(self, step: int = 1) -> Path:
        """A checkpoint of the run on drawn images; not to be changed."""
        return self.runs / "shapes" / "checkpoints" / f"step_{step}.pth"

    def data(self, classes: Sequence[str] = FOLDER_CLASSES, num_images: int = 4) -> Path:
        """A data set of one's own of 32 pixels; its images show the classes 1 and 2."""
        masks = {f"img{i}": stripes(0, 1, 2, height=32, width=32) for i in range(num_images)}
        return write_folder(self.folder / "data", classes, masks, masks)

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the case's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def fifo(self, name: str) -> Path:
        """A named pipe that nobody writes into."""
        os.mkfifo(self.folder / name)
        return self.folder / name

    # What is called

    def call(self, program: Callable[[], Any], environment: Mapping[str, str | None] | None = None) -> str:
        """What a program in this process says in the end: exit code and message, or the error that it leaves raw."""
        given = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        for name, value in (environment or {}).items():
            if value is None:
                given.pop(name, None)
            else:
                given[name] = value
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            patch.dict(os.environ, given, clear=True),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                code = int(program() or 0)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException as error:
                code = 1
                err.write("Traceback: " + "".join(traceback.format_exception_only(error)))
        told = " ".join(err.getvalue().split("error: ", 1)[-1].split())
        self.printed = out.getvalue()
        return self.shorten(f"exit {code}: {told}" if code else f"exit 0: {' '.join(out.getvalue().split())}")

    def shorten(self, text: str) -> str:
        """A text without the place of the case."""
        return text.replace(str(self.folder), "…").replace(str(self.runs), "…")

    def main(
        self, *overrides: str, environment: Mapping[str, str | None] | None = None, **options: Any
    ) -> str:
        """What main.py says of the tiny config with fields set; `--dry-run` unless `train`."""
        config = options.get("config") or self.config()
        arguments = ["--config", str(config), "--device", "cpu", *options.get("arguments", ())]
        if "log" not in options.get("without", ()):
            arguments += ["--log", options.get("log", "run")]
        if not options.get("train", False):
            arguments.append("--dry-run")
        program = importlib.import_module("main").main
        with patch.object(sys, "argv", ["main.py", *arguments, *set_fields(*overrides)]):
            return self.call(program, environment)

    def on_folder(self, *overrides: str, **options: Any) -> str:
        """`main` on the data set of `data`."""
        return self.main(*FOLDER_FIELDS, f"data.root={self.folder / 'data'}", *overrides, **options)

    def tool(
        self, name: str, *arguments: str | Path, environment: Mapping[str, str | None] | None = None
    ) -> str:
        """What a tool says."""
        program = importlib.import_module(f"tools.{name}").main
        return self.call(lambda: program([str(argument) for argument in arguments]), environment)

    def predict(
        self, *inputs: str | Path, checkpoint: Path | None = None, options: Sequence[str] = ()
    ) -> str:
        """What predict says of images."""
        output: list[str | Path] = ["--output", self.folder / "out", "--num-workers", "0", "--device", "cpu"]
        return self.tool("predict", checkpoint or self.checkpoint(), *inputs, *output, *options)


def prepare_runs(folder: Path) -> None:
    """Train the runs that cases take copies of, into a folder."""
    place = Place(folder / "place", folder)
    place.data()
    answers = [
        place.main(log="shapes", train=True),
        place.on_folder(log="folder", train=True),
    ]
    assert all(answer.startswith("exit 0") for answer in answers), answers
    for name in ("shapes", "folder"):
        shutil.move(folder / "place" / "runs" / name, folder / name)
