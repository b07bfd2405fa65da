"""utils/report/plots.py: figures of few and many steps and classes can be drawn."""

import io

import numpy as np
from PIL import Image

from tests.support.results import make_results
from utils.report.plots import draw_forgetting, draw_miou_over_steps, draw_per_class_iou


def test_one_step_has_plots_too_and_nothing_to_forget() -> None:
    results = make_results(["background", "cost in $ and $"], [np.array([0.5, np.nan])], task="offline")
    for draw in (draw_miou_over_steps, draw_per_class_iou, draw_forgetting):
        assert Image.open(io.BytesIO(draw(results))).format == "PNG"


def test_a_heat_map_of_many_classes_is_taller_and_stays_within_bounds() -> None:
    few = make_results([f"c{index}" for index in range(5)], [np.full(4, 0.5), np.full(5, 0.5)])
    many = make_results([f"c{index}" for index in range(151)], [np.full(101, 0.5), np.full(111, 0.5)])
    sizes = [Image.open(io.BytesIO(draw_per_class_iou(each))).size for each in (few, many)]
    assert sizes[1][1] > 2 * sizes[0][1]
    assert max(sizes[1]) < 6000


def test_forgetting_can_be_drawn_where_no_class_has_an_iou_now() -> None:
    history = [np.array([0.5, 0.5]), np.array([0.5, 0.4, 0.5]), np.array([0.5, np.nan, np.nan, 0.5])]
    assert Image.open(io.BytesIO(draw_forgetting(make_results(list("abcd"), history)))).format == "PNG"
