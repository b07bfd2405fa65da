"""utils/report/html.py: what report.html shows, of whole and of damaged runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.data import stripes
from tests.support.report import CONFUSIONS, NAMES, write_run
from tests.support.training import tiny, train
from tools import report as report_tool
from utils.metrics import pixel_flow
from utils.report.figures import MAX_POINTS, draw_classes, draw_curves, draw_flow, draw_miou
from utils.report.html import draw, encode_runs, write_html_report
from utils.report.reading import read_results, read_task
from utils.report.run_files import save_confusion


@pytest.fixture(scope="module")
def written_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "run", NAMES, CONFUSIONS)


@pytest.fixture
def run_dir(written_run: Path, tmp_path: Path) -> Path:
    """A copy that may be harmed."""
    return shutil.copytree(written_run, tmp_path / "run")


# What it shows


def test_a_run_leaves_a_page_with_its_classes_scores_config_and_environment(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    results = read_results(finished_run)
    assert "all 2 steps finished" in page
    last = results["steps"][-1]
    for text in (*results["class_names"], f"{100 * last['miou_all']:.1f}", results["versions"]["torch"]):
        assert f">{text}<" in page
    assert "lr_incremental: 0.001" in page


def test_heat_maps_hold_iou_forgetting_and_what_is_lost_to_background(run_dir: Path) -> None:
    results = read_results(run_dir)
    figures = draw(results, read_task(run_dir, results), dict(enumerate(CONFUSIONS)), {})
    iou, forgetting, lost = (trace.z for trace in figures["classes"].data)
    nan = np.nan
    np.testing.assert_allclose(iou, np.array([[200 / 3, 60], [50, 25], [100, 0], [nan, 50]]))
    np.testing.assert_allclose(forgetting, np.array([[nan, 20 / 3], [nan, 25], [nan, 100], [nan, nan]]))
    np.testing.assert_allclose(lost, np.array([[nan, nan], [25, 50], [0, 50], [nan, 0]]))
    assert figures["classes"].layout.shapes[0].y0 == 2.5, "between the third class and the first of step 1"
    assert "flow" not in figures, "without confusion matrices there is nothing to show"


def test_training_time_is_in_human_units(run_dir: Path) -> None:
    assert "<td>3 min 5 s</td>" in write_html_report(run_dir).read_text(encoding="utf-8")


def test_a_little_forgetting_does_not_look_like_much() -> None:
    little, much = np.full((2, 2), 0.02), np.full((2, 2), 0.5)
    figure = draw_classes(["a", "b"], ["#000000"] * 2, much, little, much, [1])
    assert [trace.zmax for trace in figure.data] == [100, 10, 50]


def test_miou_is_shown_with_and_without_background(run_dir: Path) -> None:
    steps = read_results(run_dir)["steps"]
    lines = {(trace.name, trace.xaxis): trace.y for trace in draw_miou(steps).data}
    assert lines["all", "x"][0] == pytest.approx(100 * steps[0]["miou_all"])
    assert lines["all", "x2"][1] == pytest.approx(100 * steps[1]["without_background"]["miou_all"])
    assert lines["old", "x"] == (None, pytest.approx(100 * steps[1]["miou_old"]))


def test_flow_shows_where_old_pixels_go() -> None:
    figure = draw_flow([0, 1], [pixel_flow(CONFUSIONS[0], 0), pixel_flow(CONFUSIONS[1], 3)])
    bars = {(trace.name, trace.xaxis): trace.y for trace in figure.data}
    # 50 pixels of the two old classes at step 1: 10 right, 25 background, 15 of the new class.
    assert bars["predicted as labelled", "x2"] == (None, pytest.approx(20))
    assert bars["predicted as background", "x2"] == (None, pytest.approx(50))
    assert bars["predicted as another new class", "x2"] == (None, pytest.approx(30))


def test_curves_have_every_term_and_break_between_steps() -> None:
    lines = [
        {
            "step": step,
            "iteration": 10 * step + i,
            "epoch": 0,
            "loss": 1.0,
            "lr": 0.1,
            "images_per_second": 9.0,
        }
        | ({"orthogonal": 0.5 * i} if step else {})
        for step in range(2)
        for i in range(2)
    ]
    figure = draw_curves(lines)
    curves = dict(zip((note.text for note in figure.layout.annotations), figure.data, strict=True))
    assert list(curves) == ["loss", "orthogonal", "lr", "images per second"]
    assert curves["loss"].x == (0, 1, None, 10, 11, None)
    assert curves["orthogonal"].y == (0, 0.5, None)


def test_a_long_curve_is_thinned_out_by_means() -> None:
    line = {"step": 0, "epoch": 0, "loss": 1.0, "lr": 0.1, "images_per_second": 9.0}
    figure = draw_curves([line | {"iteration": i, "loss": float(i % 2)} for i in range(2 * MAX_POINTS)])
    assert len(figure.data[0].y) == MAX_POINTS + 1
    assert set(figure.data[0].y) == {0.5, None}


def test_runs_of_a_mask_are_ids_and_lengths() -> None:
    assert encode_runs(stripes(3, 3, 0, 255, height=2, width=4)) == [3, 2, 0, 1, 255, 1, 3, 2, 0, 1, 255, 1]
    assert encode_runs(stripes(7, height=2, width=2)) == [7, 4]


def test_names_are_text_and_never_part_of_the_page(run_dir: Path) -> None:
    page = write_html_report(run_dir).read_text(encoding="utf-8")
    assert "<b>&" not in page
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in page
    assert "task: &#39;&lt;2-1&gt;&#39;" in page


def test_a_step_to_come_is_shown_as_such(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", NAMES, CONFUSIONS[:1])
    page = write_html_report(run).read_text(encoding="utf-8")
    assert "1 of 2 steps finished" in page
    assert page.count("to come") == 1


# What is missing or damaged


def test_results_alone_make_a_report(run_dir: Path) -> None:
    """A run of code that wrote no task.json and no panels, moved without the rest."""
    for path in run_dir.iterdir():
        if path.name != "results.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = write_html_report(run_dir).read_text(encoding="utf-8")
    assert "step_1.csv: the confusion matrix of step 1 is missing" in page
    assert 'id="images"' not in page
    assert read_task(run_dir, read_results(run_dir)).steps == [NAMES[:3], NAMES[3:]]


def test_damaged_files_are_left_out_and_named(run_dir: Path) -> None:
    (run_dir / "confusion" / "step_0.csv").write_text("x,y\na,many\n")
    (run_dir / "panels" / "image_1" / "step_0.png").write_bytes(b"cut")
    (run_dir / "config.yaml").write_bytes(b"task: M\xfcnchen\n")
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    assert len(lines) == 6
    (run_dir / "metrics.jsonl").write_bytes(b"\n".join([*lines, b"7", b"{}", b"\xff", b'{"step": 1, "iter']))
    page = write_html_report(run_dir).read_text(encoding="utf-8")
    assert page.count("<li>") == 4
    assert "step_0.csv: expected whole numbers" in page
    assert "step_0.png" in page
    assert "metrics.jsonl: left out: damaged lines (7, 8, 9, 10)" in page
    assert 'id="curves"' in page
    assert "config.yaml: left out: " in page


def test_a_matrix_of_other_classes_is_left_out(run_dir: Path) -> None:
    save_confusion(run_dir, 1, CONFUSIONS[0], NAMES[:3])
    page = write_html_report(run_dir).read_text(encoding="utf-8")
    assert "step_1.csv: 3 classes, results.json has 4" in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", None, "no such file; a run has a report once its first step is finished"),
        ("results.json", "{", "not valid JSON"),
        ("results.json", '{"steps": [], "class_names": ["a"]}', "no step is finished"),
        ("results.json", '{"steps": [{"step": 0}]}', "class_names: Field required; steps.0.per_class_iou"),
        ("task.json", '{"steps": []}', "not the task of this run"),
    ],
)
def test_what_makes_no_report_is_told_by_file(
    run_dir: Path, name: str, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / name).unlink() if content is None else (run_dir / name).write_text(content)
    with pytest.raises(SystemExit) as ended:
        report_tool.main([str(run_dir)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {run_dir}")
    assert message in told
    assert not (run_dir / "report.html").exists()


def test_an_entry_of_another_version_is_told(run_dir: Path) -> None:
    results = read_results(run_dir)
    del results["steps"][0]["seconds"]
    (run_dir / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"not the files of a run as this version writes them .*seconds"):
        write_html_report(run_dir)


def test_the_command_makes_the_reports_of_several_runs(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run_dir, run_dir.with_name("other"), ignore=shutil.ignore_patterns("plots"))
    assert report_tool.main([str(run_dir), str(other)]) == 0
    assert capsys.readouterr().out.split() == [str(run_dir / "report.html"), str(other / "report.html")]
    assert "<h1>other</h1>" in (other / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in (other / "plots").iterdir()} == {
        "miou_over_steps.png",
        "per_class_iou.png",
        "forgetting.png",
    }


def test_a_run_that_is_asked_for_no_report_draws_none(tmp_path: Path) -> None:
    config = tiny(tmp_path, "plain", "method=finetune")
    assert not config.logging.report
    train(config)
    assert (config.run_dir / "results.md").is_file()
    assert not (config.run_dir / "report.html").exists()
    assert not (config.run_dir / "plots").exists()
