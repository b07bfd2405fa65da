"""utils/report/html.py: what report.html shows, of whole and of damaged runs, and how it behaves in a browser."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.support.data import stripes
from tools import report as report_tool
from utils.images import make_palette
from utils.metrics import iou_per_class, pixel_flow
from utils.report.figures import MAX_POINTS, draw_classes, draw_curves, draw_flow, draw_miou
from utils.report.html import draw, encode_runs, write_html_report
from utils.report.pictures import write_image, write_mask
from utils.report.reading import read_results, read_task
from utils.report.results import build_results, make_step_entry
from utils.report.run_files import save_confusion, write_task

# A folder's classes may hold anything.
NAMES = ["background", "cat", "</script><b>&", "$x$, y"]
CONFUSIONS = [
    np.array([[60, 20, 0], [10, 30, 0], [0, 0, 5]]),
    np.array([[60, 0, 0, 15], [20, 10, 0, 10], [5, 0, 0, 5], [0, 0, 0, 30]]),
]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def write_run(
    folder: Path, names: Sequence[str], confusions: Sequence[npt.NDArray[np.int64]], image_size: int = 12
) -> Path:
    """Write the folder of a run whose steps ended with these confusion matrices, with two images; return it."""
    num_seen = [0, *map(len, confusions)]
    history: list[Any] = []
    entries, lines = [], []
    for step, confusion in enumerate(confusions):
        old, seen = num_seen[step], num_seen[step + 1]
        history.append(iou_per_class(confusion))
        entries.append(
            make_step_entry(
                step_index=step,
                new_class_names=names[old:seen],
                iou_history=history,
                class_names_seen=names[:seen],
                num_old=old,
                num_new=seen - old,
                num_base=num_seen[1],
                num_train_images=10 + step,
                num_val_images=2,
                seconds=185.0,
            )
        )
        save_confusion(folder, step, confusion, names[:seen])
        terms = {"cross_entropy": 0.5} if step == 0 else {"cross_entropy": 0.25, "orthogonal": 0.125}
        for iteration in (2 * step, 2 * step + 1):
            line = {"step": step, "iteration": iteration, "epoch": 0, "loss": sum(terms.values()), **terms}
            lines.append(json.dumps(line | {"lr": 0.1, "images_per_second": 9.0}) + "\n")
        lines.append(json.dumps({"step": step, "iteration": 2 * step + 1, "miou_all": 0.5}) + "\n")
    facts: dict[str, Any] = {"task": "2-1", "setting": "overlap", "method": "mbs", "dataset": "folder"}
    results = build_results(class_names=names, steps=entries, seed=0, device="cpu", **facts)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "config.yaml").write_text("task: '<2-1>'\n")
    colours = make_palette(len(names))
    steps = [names[old:seen] for old, seen in itertools.pairwise(num_seen)]
    write_task(folder, "2-1", [*steps, names[num_seen[-1] :]], dict(zip(names, colours, strict=True)))
    shape = {"height": image_size, "width": image_size}
    for index in range(2):
        panel = folder / "panels" / f"image_{index}"
        write_image(panel / "image.jpg", np.full((image_size, image_size, 3), 200, np.uint8))
        write_mask(panel / "ground_truth.png", stripes(0, 1, 2, 255, **shape), colours)
        for step in range(len(confusions)):
            write_mask(panel / f"step_{step}.png", stripes(0, 1, 0, 0, **shape), colours)
    return folder


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
    other = shutil.copytree(run_dir, run_dir.with_name("other"))
    assert report_tool.main([str(run_dir), str(other)]) == 0
    assert capsys.readouterr().out.split() == [str(run_dir / "report.html"), str(other / "report.html")]
    assert "<h1>other</h1>" in (other / "report.html").read_text(encoding="utf-8")


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, and without a network: nothing but the file can be had."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    for argument in (*arguments, "--window-size=1300,1000", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def open_page(browser: Any, path: Path) -> Callable[..., Any]:
    """Open a report, and return what runs a script there; the log has been read empty."""
    browser.get(path.as_uri())
    run: Callable[..., Any] = browser.execute_script
    return run


PIXEL = """
const [tile, x, y] = arguments;
return [...document.querySelectorAll("canvas")[tile].getContext("2d").getImageData(x, y, 1, 1).data];
"""


def test_the_page_works_in_a_browser_without_a_network(browser: Any, run_dir: Path) -> None:
    run = open_page(browser, write_html_report(run_dir))
    assert browser.get_log("browser") == [], "no error, nothing that was asked for and refused"
    assert run("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert run("return document.querySelectorAll('.js-plotly-plot .main-svg:first-child').length") == 4
    assert run(
        "return [...document.querySelectorAll('.tile img')].every((image) => image.naturalWidth === 12)"
    )
    texts = run("return [...document.querySelectorAll('.ytick text')].map((text) => text.textContent)")
    assert [text.removesuffix(" ■") for text in texts if text.endswith("■")] == NAMES

    # The ground truth's second stripe is the cat; its canvas is the first, those of two steps follow.
    assert run(PIXEL, 0, 4, 0) == [128, 0, 0, 255]
    assert run(PIXEL, 0, 11, 0) == [224, 224, 192, 255], "what is not evaluated"
    run("const s = document.getElementById('opacity'); s.value = 25; s.dispatchEvent(new Event('input'))")
    assert run("return getComputedStyle(document.querySelector('canvas')).opacity") == "0.25"
    assert run("return document.getElementById('opacity-value').textContent") == "25"

    run("document.querySelector('#legend [data-class=\"1\"]').click()")
    assert run(PIXEL, 0, 4, 0)[3] == 0, "the cat is hidden"
    assert run(PIXEL, 0, 7, 0)[3] == 255, "the others are not"
    run("document.querySelector('#legend [data-class=\"1\"]').click()")
    assert run(PIXEL, 0, 4, 0) == [128, 0, 0, 255]
    run("document.querySelector('[data-all=\"false\"]').click()")
    assert run(PIXEL, 0, 7, 0)[3] == 0
    run("document.querySelector('[data-all=\"true\"]').click()")

    run("document.getElementById('errors').click()")
    assert run(PIXEL, 1, 4, 0)[3] == 0, "what is right"
    assert run(PIXEL, 1, 7, 0) == [0, 0, 0, 255], "what is background and should not be"
    assert run(PIXEL, 1, 11, 0)[3] == 0, "what is not evaluated is not wrong"

    shown = "return [...document.querySelectorAll('.confused')].map((table) => table.hidden)"
    assert run(shown) == [True, False]
    run(
        "const s = document.getElementById('confused-step'); s.value = 0; s.dispatchEvent(new Event('change'))"
    )
    assert run(shown) == [False, True]
    # Reading pixels makes Chromium give advice on speed.
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_task_of_20_steps_and_151_classes_fits(browser: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["background", *(f"class {c} with a name" for c in range(1, 151))]
    sizes = [56 + 5 * step for step in range(20)]
    confusions = [rng.integers(0, 9, (size, size)) + 99 * np.eye(size, dtype=np.int64) for size in sizes]
    run = open_page(browser, write_html_report(write_run(tmp_path / "run", names, confusions)))
    assert browser.get_log("browser") == []
    assert run("return document.documentElement.scrollWidth <= window.innerWidth")
    ticks = run(
        "return [...document.querySelectorAll('#classes .ytick text')].map((text) => {"
        "const box = text.getBoundingClientRect(); return [text.textContent, box.left, box.top, box.height]})"
    )
    assert [text.removesuffix(" ■") for text, *_ in ticks] == names
    assert min(left for _, left, *_ in ticks) >= 0
    tops = [top for _, _, top, _ in ticks]
    assert min(np.diff(tops)) >= 0.9 * 14, "no label lies on another"
    assert run("return document.querySelectorAll('canvas').length") == 2 * 21
