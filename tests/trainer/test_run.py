"""trainer/run.py: when a run draws its pictures."""

from pathlib import Path
from typing import Any

import pytest

import trainer.run
from tests.support.training import WORKER, tiny, train
from trainer.plan import prepare
from trainer.run import hyperparameters, run
from utils.config.fields import flatten

STEPS = "task=[[ring], [disc], [star]]"


@pytest.mark.parametrize(("seconds", "drawn_after"), [(60.0, [3]), (-1.0, [1, 2, 3])])
def test_plots_and_report_follow_the_last_step_and_earlier_ones_now_and_then_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, drawn_after: list[int]
) -> None:
    drawn: dict[str, list[int]] = {"plots": [], "report": []}

    def note_plots(_: Path, results: dict[str, Any]) -> None:
        drawn["plots"].append(len(results["steps"]))

    monkeypatch.setattr(trainer.run, "SECONDS_BETWEEN_PICTURES", seconds)
    monkeypatch.setattr(trainer.run, "write_plots", note_plots)
    monkeypatch.setattr(trainer.run, "draw_report", lambda *_: drawn["report"].append(drawn["plots"][-1]))
    run(prepare(tiny(tmp_path, "run", STEPS, "logging.report=true"), WORKER), WORKER)
    assert drawn == {"plots": drawn_after, "report": drawn_after}


def test_a_report_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run_dir: Path) -> None:
        raise OSError(28, "No space left on device", str(run_dir / "report.html"))

    monkeypatch.setattr("trainer.run.write_html_report", fail)
    config = tiny(tmp_path, "unreported", "method=finetune", "logging.report=true")
    assert len(train(config)["steps"]) == 2
    told = capsys.readouterr().out
    assert "warning: report.html was not written" in told
    assert f"python -m tools.report {config.run_dir}" in told


def test_hyperparameters_begin_with_what_runs_differ_in_and_leave_nothing_out(tmp_path: Path) -> None:
    config = tiny(tmp_path, "run", "train.clip_grad_norm=3.0", "evaluate.future=background")
    fields = hyperparameters(config)
    names = list(fields)
    assert names[:2] == ["method.name", "seed"]
    default = names.index("evaluate.mode")
    assert max(names.index("train.clip_grad_norm"), names.index("evaluate.future")) < default
    assert fields == dict(flatten(config.model_dump(mode="json")))
