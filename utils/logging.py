"""What a run says while it trains: console and log.txt, one progress bar, metrics.jsonl, TensorBoard."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from utils.console import progress_bar
from utils.files import write_atomic, writing


class _TqdmHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class RunLog:
    """The one writer of a run; in processes other than the main one it stays silent and touches no file."""

    def __init__(self, run_dir: Path, is_main: bool) -> None:
        self.is_main = is_main
        self._metrics_path = run_dir / "metrics.jsonl"
        self._tensorboard_dir = run_dir / "tensorboard"
        self._logger = logging.getLogger("run")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.handlers.clear()
        self._writer: Any = None
        if not is_main:
            self._logger.addHandler(logging.NullHandler())
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        handlers = [_TqdmHandler(), logging.FileHandler(run_dir / "log.txt", encoding="utf-8")]
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        for handler in handlers:
            self._logger.addHandler(handler)

    def info(self, message: str) -> None:
        """Say a line on the console and in log.txt."""
        self._logger.info(message)

    def write(self, message: str) -> None:
        """Say something in log.txt only."""
        for handler in self._logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(self._logger.makeRecord("run", logging.ERROR, "", 0, message, (), None))

    def start_step(self, step: int, iteration: int) -> None:
        """Forget what an interrupted attempt at this step had written from this iteration of the run on."""
        if self.is_main:
            self._keep(
                lambda line: line["step"] < step or (line["step"] == step and line["iteration"] < iteration)
            )
            self._open_writer(purge_step=iteration)

    def start_evaluation(self, step: int) -> None:
        """Forget an earlier evaluation of this step, where a run was stopped after it; the training's lines stay."""
        if self.is_main:
            self._keep(lambda line: line["step"] != step or "epoch" in line)
            if self._writer is None:
                self._open_writer(purge_step=None)

    def metrics(self, step: int, iteration: int, values: Mapping[str, float | None], **more: Any) -> None:
        """Write a line of metrics.jsonl, and `values` as curves over the run's iterations."""
        if not self.is_main:
            return
        line = {"step": step, "iteration": iteration, **more, **values}
        text = json.dumps(line) + "\n"
        with writing(self._metrics_path, len(text)), self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(text)
        for name, value in values.items():
            if value is not None and self._writer is not None:
                self._writer.add_scalar(name, value, iteration)

    def image(self, name: str, iteration: int, image: npt.NDArray[np.uint8]) -> None:
        """Show an image (H,W,3) in TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, image, iteration, dataformats="HWC")

    def flush(self) -> None:
        """Bring to disk what TensorBoard still holds back."""
        if self._writer is not None:
            self._writer.flush()

    def progress(self, description: str, total: int, initial: int = 0) -> "tqdm[Any]":
        """Return the progress bar of a step, `initial` of its `total` iterations done."""
        return progress_bar(description, total, initial=initial, shown=self.is_main)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        if self._metrics_path.exists():
            lines = self._metrics_path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if (values := _parse(line)) is not None and wanted(values)]
            write_atomic(self._metrics_path, "".join(line + "\n" for line in kept))

    def _open_writer(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only the main process writes

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=purge_step)

    def close(self) -> None:
        """Flush and close all files."""
        if self._writer is not None:
            self._writer.close()
        for handler in list(self._logger.handlers):
            handler.close()
            self._logger.removeHandler(handler)


def _parse(line: str) -> dict[str, Any] | None:
    """The values of a line of metrics.jsonl; None for one that was cut off, as by a full disk."""
    try:
        values: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return values
