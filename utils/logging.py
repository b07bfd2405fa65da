"""What a run says while it trains: console and log.txt, one progress bar, metrics.jsonl, TensorBoard, W&B."""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from utils.console import progress_bar
from utils.documents import DocumentError, parse_json
from utils.errors import RunError
from utils.files import SaveError, write_atomic, writing


class WandbError(RunError, RuntimeError):
    """Weights & Biases cannot be reached or refuses the run."""


class _TqdmHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class _LogFile(logging.FileHandler):
    """log.txt; that it cannot be written any more, as on a full disk, is said once."""

    is_lost = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not self.is_lost:
            self.is_lost = True
            print(f"{self.baseFilename}: cannot be written any more ({sys.exc_info()[1]})", file=sys.stderr)


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
        self._wandb_id_path = run_dir / "wandb_id.txt"
        self._wandb: Any = None
        if not is_main:
            self._logger.addHandler(logging.NullHandler())
            return
        with writing(run_dir / "log.txt", 1000):
            run_dir.mkdir(parents=True, exist_ok=True)
            handlers = [_TqdmHandler(), _LogFile(run_dir / "log.txt", encoding="utf-8")]
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        for handler in handlers:
            self._logger.addHandler(handler)

    def start_wandb(self, project: str, name: str, fields: Mapping[str, Any]) -> None:
        """Write to Weights & Biases, too; a run that was there before goes on there. Raises WandbError, SaveError."""
        import wandb  # an extra that only those need who name a project

        known = self._wandb_id_path.read_text().strip() if self._wandb_id_path.exists() else None
        try:
            self._wandb = wandb.init(
                project=project,
                name=name,
                id=known,
                resume="allow",
                dir=self._wandb_id_path.parent,
                config=dict(fields),
            )
        except wandb.Error as error:
            raise WandbError(
                f"logging.wandb: {error}; log in (wandb login), set WANDB_MODE=offline, or set logging.wandb=null"
            ) from error
        write_atomic(self._wandb_id_path, f"{self._wandb.id}\n")
        # Its own count only grows, but a step that is continued goes back to its last save.
        self._wandb.define_metric("*", step_metric="iteration")

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
        with self._writing_curves():
            for name, value in values.items():
                if value is not None and self._writer is not None:
                    self._writer.add_scalar(name, value, iteration)
        if self._wandb is not None:
            self._wandb.log(line)

    def image(self, name: str, iteration: int, image: npt.NDArray[np.uint8]) -> None:
        """Show an image (H,W,3)."""
        if self._writer is not None:
            with self._writing_curves():
                self._writer.add_image(name, image, iteration, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(image), "iteration": iteration})

    def final_scores(self, fields: Mapping[str, Any], scores: Mapping[str, float | None]) -> None:
        """Say what the fields of a config have come to, so that runs can be compared by both."""
        known = {name: value for name, value in scores.items() if value is not None}
        if self._writer is not None:
            plain = {
                name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                for name, value in fields.items()
            }
            # Without a name they would be a run of their own beside this one.
            final = {f"final/{name}": value for name, value in known.items()}
            with self._writing_curves():
                self._writer.add_hparams(plain, final, run_name=".")
        if self._wandb is not None:
            self._wandb.summary.update({f"final/{name}": value for name, value in known.items()})

    def flush(self) -> None:
        """Bring to disk what TensorBoard still holds back."""
        if self._writer is not None:
            with self._writing_curves():
                self._writer.flush()

    def progress(self, description: str, total: int, initial: int = 0, to_come: int = 0) -> "tqdm[Any]":
        """Return the progress bar of a step, `initial` of its `total` iterations done and `to_come` in later steps."""
        return progress_bar(description, total, initial=initial, to_come=to_come, shown=self.is_main)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        if self._metrics_path.exists():
            lines, _ = read_metrics(self._metrics_path)
            kept = [json.dumps(line) + "\n" for line in lines if wanted(line)]
            write_atomic(self._metrics_path, "".join(kept))

    def _open_writer(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only the main process writes

        with self._writing_curves():
            if self._writer is not None:
                self._writer.close()
            self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=purge_step)

    def _writing_curves(self) -> AbstractContextManager[None]:
        return writing(self._tensorboard_dir, 100_000)

    def close(self, is_failing: bool = False) -> None:
        """Flush and close all files. is_failing: an error is under way, which one of here must not hide.

        Raises SaveError.
        """
        with suppress(SaveError) if is_failing else nullcontext(), self._writing_curves():
            if self._writer is not None:
                self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()
        for handler in list(self._logger.handlers):
            self._logger.removeHandler(handler)
            with suppress(OSError):  # what a full disk has kept it from writing has been told
                handler.close()


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the lines of metrics.jsonl, and the numbers of those left out: cut off, as by a full disk, or no entry."""
    lines, damaged = [], []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            line = parse_json(text)
        except DocumentError:
            line = None
        if isinstance(line, dict) and all(isinstance(line.get(k), int) for k in ("step", "iteration")):
            lines.append(line)
        else:
            damaged.append(number)
    return lines, damaged
