"""utils/logging.py: what is written, what an interrupted step leaves behind, and silence on other ranks."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.logging import RunLog, WandbError


def rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_steps(run_dir: Path, *keys: tuple[int, int]) -> None:
    """Write a line for every (step, iteration)."""
    log = RunLog(run_dir, is_main=True)
    for step, iteration in keys:
        log.metrics(step, iteration, {"loss": 0.5}, epoch=0)
    log.close()


def test_metrics_are_one_json_line_each(tmp_path: Path) -> None:
    log = RunLog(tmp_path, is_main=True)
    log.metrics(0, 9, {"loss": 0.25, "lr": 1e-5}, epoch=2)
    log.metrics(1, 20, {"miou_all": 0.5, "miou_old": None})
    log.close()
    assert rows(tmp_path) == [
        {"step": 0, "iteration": 9, "epoch": 2, "loss": 0.25, "lr": 1e-5},
        {"step": 1, "iteration": 20, "miou_all": 0.5, "miou_old": None},
    ]


def test_starting_a_step_drops_the_rows_of_its_interrupted_attempt_only(tmp_path: Path) -> None:
    write_steps(tmp_path, (0, 0), (0, 1), (1, 2), (1, 3))
    log = RunLog(tmp_path, is_main=True)
    log.start_step(1, iteration=2)
    log.metrics(1, 2, {"loss": 0.125})
    log.close()
    assert [(row["step"], row["iteration"]) for row in rows(tmp_path)] == [(0, 0), (0, 1), (1, 2)]
    assert rows(tmp_path)[-1]["loss"] == 0.125


def test_starting_the_step_after_a_finished_one_drops_nothing(tmp_path: Path) -> None:
    write_steps(tmp_path, (0, 0), (0, 1))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    log = RunLog(tmp_path, is_main=True)
    log.start_step(1, iteration=2)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("row", ['{"step": 1, "iter', "7", "[]", '{"loss": 1.0}'])
def test_a_row_that_a_crash_cut_off_or_that_is_none_is_dropped_too(tmp_path: Path, row: str) -> None:
    write_steps(tmp_path, (0, 0), (1, 1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(row)
    log = RunLog(tmp_path, is_main=True)
    log.start_step(1, iteration=1)
    log.close()
    assert [row["iteration"] for row in rows(tmp_path)] == [0]


def test_the_first_step_of_a_new_run_needs_no_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "new" / "run", is_main=True)
    log.start_step(0, iteration=0)
    log.close()
    assert (tmp_path / "new" / "run" / "tensorboard").is_dir()


def test_curves_and_images_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, is_main=True)
    log.start_step(0, iteration=0)
    log.metrics(0, 4, {"loss": 0.25, "miou_old": None})
    log.image("panels/a", 4, np.zeros((4, 12, 3), dtype=np.uint8))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(4, 0.25)]
    assert events.Tags()["scalars"] == ["loss"]
    assert events.Tags()["images"] == ["panels/a"]


def test_lines_go_to_the_console_and_to_the_end_of_the_log_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for message in ("first", "second: λ"):
        log = RunLog(tmp_path, is_main=True)
        log.info(message)
        log.close()
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second: λ"], "after date and time"
    assert capsys.readouterr().out == "first\nsecond: λ\n"


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    log = RunLog(run_dir, is_main=False)
    log.info("hello")
    log.start_step(0, iteration=0)
    log.metrics(0, 0, {"loss": 1.0})
    log.image("a", 0, np.zeros((4, 4, 3), dtype=np.uint8))
    with log.progress("step 0", total=3) as bar:
        bar.update()
    log.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert list(tmp_path.iterdir()) == []


def test_fields_and_final_scores_become_hyperparameters_of_the_same_tensorboard_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    log = RunLog(tmp_path, is_main=True)
    log.start_step(0, iteration=0)
    log.final_scores(
        {"train.lr_base": 0.5, "task": [["a"]], "init_from": None}, {"miou_all": 0.25, "hiou": None}
    )
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("final/miou_all")] == [0.25]
    assert "final/hiou" not in events.Tags()["scalars"]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    fields = HParamsPluginData.FromString(content).session_start_info.hparams
    assert fields["train.lr_base"].number_value == 0.5
    assert fields["task"].string_value == '[["a"]]'
    assert fields["init_from"].string_value == "null"


class FakeWandb:
    """What this code uses of Weights & Biases; remembers what it is told."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, float] = {}
        self.id, self.fails, self.finished = "made-up", False, False

    def init(self, **options: Any) -> "FakeWandb":
        if self.fails:
            raise FakeWandb.Error("no API key")
        self.calls.append(options)
        self.id = options["id"] or self.id
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.calls.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def Image(self, pixels: Any) -> tuple[int, ...]:  # noqa: N802 - its name there
        return tuple(pixels.shape)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_weights_and_biases_gets_curves_panels_and_final_scores(
    tmp_path: Path, fake_wandb: FakeWandb
) -> None:
    log = RunLog(tmp_path, is_main=True)
    log.start_wandb("project", "name", {"seed": 3})
    log.metrics(0, 9, {"loss": 0.25}, epoch=2)
    log.image("panels/a", 9, np.zeros((4, 12, 3), dtype=np.uint8))
    log.final_scores({"seed": 3}, {"miou_all": 0.5, "hiou": None})
    log.close()
    options = fake_wandb.calls[0]
    assert (options["project"], options["name"], options["config"]) == ("project", "name", {"seed": 3})
    assert ("*", "iteration") in fake_wandb.calls
    assert fake_wandb.logged == [
        {"step": 0, "iteration": 9, "epoch": 2, "loss": 0.25},
        {"panels/a": (4, 12, 3), "iteration": 9},
    ]
    assert fake_wandb.summary == {"final/miou_all": 0.5}
    assert fake_wandb.finished


def test_a_continued_run_goes_on_as_the_same_run_of_weights_and_biases(
    tmp_path: Path, fake_wandb: FakeWandb
) -> None:
    for _ in range(2):
        log = RunLog(tmp_path, is_main=True)
        log.start_wandb("project", "name", {})
        log.close()
        fake_wandb.id = "another"
    first, second = (call for call in fake_wandb.calls if isinstance(call, dict))
    assert first["id"] is None
    assert (second["id"], second["resume"]) == ("made-up", "allow")


def test_weights_and_biases_that_refuses_is_told_with_what_to_do(
    tmp_path: Path, fake_wandb: FakeWandb
) -> None:
    fake_wandb.fails = True
    log = RunLog(tmp_path, is_main=True)
    with pytest.raises(WandbError, match=r"logging\.wandb: no API key; .*WANDB_MODE=offline"):
        log.start_wandb("project", "name", {})
    log.close()
