"""An error while a run trains is told once, and what was finished stays."""

from __future__ import annotations

import pytest

from tests.support.cli import call_main
from tests.support.runs import Workplace, assert_same_weights


def test_unexpected_error_is_told_with_its_traceback_on_the_console_and_in_the_log(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("something is wrong in the code")

    run = place.copy("shapes", "unexpected")
    (run.folder / "results.json").unlink()
    monkeypatch.setattr("trainer.run.assess", fail)
    with pytest.raises(ValueError, match=r"^something is wrong in the code$"):
        call_main(*place.arguments("unexpected"))
    log = (run.folder / "log.txt").read_text()
    assert log.count("Traceback (most recent call last)") == 1
    assert log.endswith("ValueError: something is wrong in the code\n\n")


def test_diverging_loss_stops_the_run_and_leaves_earlier_steps_intact(place: Workplace) -> None:
    run = place.finished("diverged")
    assert run.process.returncode == 2
    assert "error: step 1, iteration 1 (4 of the run): cross_entropy is nan" in run.process.stderr
    assert "Traceback" not in run.process.stderr
    assert run.process.stderr.count("cross_entropy is nan") == 1
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step_0.pth"]
    assert_same_weights(run, place.finished("shapes"), 0)
    assert [step["step"] for step in run.results["steps"]] == [0]
