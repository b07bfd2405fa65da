"""report.html in a browser: what is drawn, at several widths, light and dark, by mouse and by keyboard."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.report import CONFUSIONS, NAMES, write_run
from utils.report.html import write_html_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of two steps."""
    return write_html_report(write_run(tmp_path_factory.mktemp("report") / "run", NAMES, CONFUSIONS))


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
    browser.get("about:blank")  # the same address again would be a reload
    browser.get(path.as_uri())
    run: Callable[..., Any] = browser.execute_script
    return run


PIXEL = """
const [tile, x, y] = arguments;
return [...document.querySelectorAll("canvas")[tile].getContext("2d").getImageData(x, y, 1, 1).data];
"""


def test_the_page_works_in_a_browser_without_a_network(browser: Any, page: Path) -> None:
    run = open_page(browser, page)
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
    assert run(PIXEL, 2, 7, 0) == [0, 0, 0, 255], "what is background and should not be"
    assert run(PIXEL, 1, 7, 0)[3] == 0, (
        "what a step is not scored on is not wrong, whatever the ground truth shows"
    )
    assert run(PIXEL, 1, 11, 0)[3] == 0, "what is not evaluated is not wrong"

    shown = "return [...document.querySelectorAll('.confused')].map((table) => table.hidden)"
    assert run(shown) == [True, False]
    run(
        "const s = document.getElementById('confused-step'); s.value = 0; s.dispatchEvent(new Event('change'))"
    )
    assert run(shown) == [False, True]
    # Reading pixels makes Chromium give advice on speed.
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def look_at(browser: Any, width: int, scheme: str) -> None:
    """Give the window a width and the preference for light or dark."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


BOXES = """
return [...document.querySelectorAll(arguments[0])].filter((element) => element.getClientRects().length)
  .map((element) => { const box = element.getBoundingClientRect();
                      return [box.left, box.top + scrollY, box.right, box.bottom + scrollY]; });
"""


def overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) share more than their borders."""
    return all(min(first[end], second[end]) - max(first[end - 2], second[end - 2]) > 1 for end in (2, 3))


@pytest.mark.parametrize("width", [1400, 800, 390])
def test_at_any_width_masks_lie_on_their_images_and_no_text_on_another(
    browser: Any, page: Path, width: int
) -> None:
    look_at(browser, width, "light")
    run = open_page(browser, page)
    assert run("return document.documentElement.scrollWidth <= window.innerWidth")
    images, masks = run(BOXES, ".tile img"), run(BOXES, ".tile canvas")
    assert len(images) == 8
    # Of an image, its ground truth and two steps; the image itself has no mask.
    assert masks == [box for place, box in enumerate(images) if place % 4 > 0]
    assert not any(
        overlap(one, other) for one, other in itertools.combinations(images, 2) if one[1] != other[1]
    )
    for figure in ("miou", "classes", "flow", "curves"):
        texts = run(BOXES, f"#{figure} .annotation-text, #{figure} .legendtext, #{figure} .modebar")
        assert len(texts) > 3
        assert [pair for pair in itertools.combinations(texts, 2) if overlap(*pair)] == []


def luminance(colour: str) -> float:
    """Relative luminance of a 'rgb(…)' (WCAG 2.2)."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue))
    return float(np.dot([0.2126, 0.7152, 0.0722], list(linear)))


PAINT = """
const [selector, property] = arguments;
return [...new Set([...document.querySelectorAll(selector)].map((x) => getComputedStyle(x)[property]))];
"""


def test_light_and_dark_follow_the_reader_and_can_be_read(browser: Any, page: Path) -> None:
    look_at(browser, 1400, "light")
    run = open_page(browser, page)
    for scheme in ("light", "dark"):
        look_at(browser, 1400, scheme)
        # The browser tells the page of the change with its next picture, and the plots are drawn anew then.
        WebDriverWait(browser, 60).until(
            lambda _: run(PAINT, ".xtick text", "fill") == run(PAINT, "h2", "color")
        )
        (card,) = run(PAINT, "section:not(.problems)", "backgroundColor")
        assert (luminance(card) < 0.2) == (scheme == "dark")
        texts = run(PAINT, "h2, p, td", "color")
        texts += run(PAINT, ".xtick text, .annotation-text, .legendtext", "fill")
        lines = run(PAINT, "#miou .js-line, #curves .js-line", "stroke")
        assert len(texts) >= 3
        assert len(lines) == 5, "one of the curves has the colour of a group"
        for inks, least in ((texts, 4.5), (lines, 2)):  # contrast; Okabe and Ito's sky blue has 2.3 on white
            for ink in inks:
                lighter, darker = sorted((luminance(ink), luminance(card)), reverse=True)
                assert (lighter + 0.05) / (darker + 0.05) > least, ink
    look_at(browser, 1400, "light")


def test_contents_and_controls_have_names_and_come_before_the_toolbars_of_the_plots(
    browser: Any, page: Path
) -> None:
    run = open_page(browser, page)
    links = run("return [...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))")
    assert links == run("return [...document.querySelectorAll('section')].map((section) => section.id)")
    controls = browser.find_elements("css selector", "select, input, button:not(.modebar-btn)")
    names = {control.accessible_name.strip() for control in controls}
    assert "" not in names
    assert {"show all classes", "hide all classes", "wrong pixels only", "Step of the confusions"} <= names
    assert run("return [...document.querySelectorAll('.modebar-btn')].every((b) => b.ariaLabel)")
    keys, reached = ActionChains(browser), []
    for _ in range(len(links) + len(controls) + 1):
        keys.send_keys(Keys.TAB).perform()
        reached.append(run("return document.activeElement.className.includes('modebar-btn')"))
    assert reached == [False] * (len(links) + len(controls)) + [True]


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
