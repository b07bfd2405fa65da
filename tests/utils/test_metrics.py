"""utils/metrics.py: values worked by hand, and IoU against a per-pixel form."""

import numpy as np
import pytest

from utils.metrics import (
    class_groups,
    forgetting_per_class,
    harmonic_mean,
    iou_per_class,
    lost_to_background,
    mean_iou,
    pixel_flow,
    step_scores,
    worst_confusions,
)

# Background, a, b; then c joins: b is present and never predicted.
CONFUSION_0 = np.array([[72, 8, 0], [10, 30, 0], [0, 2, 18]], dtype=np.int64)
CONFUSION_1 = np.array([[60, 0, 0, 15], [10, 20, 0, 10], [5, 0, 0, 5], [0, 0, 0, 30]], dtype=np.int64)
# d joins, never found; b is absent from labels and predictions.
IOU_2 = np.array([0.5, 0.7, np.nan, 0.25, 0.0])


def test_iou_is_intersection_over_union_by_hand() -> None:
    np.testing.assert_allclose(iou_per_class(CONFUSION_0), [72 / 90, 30 / 50, 18 / 20])


def test_iou_of_a_class_present_but_never_predicted_is_zero() -> None:
    np.testing.assert_allclose(iou_per_class(CONFUSION_1), [60 / 90, 20 / 40, 0.0, 30 / 60])


def test_iou_of_a_class_predicted_but_never_present_is_zero() -> None:
    np.testing.assert_allclose(iou_per_class(np.array([[3, 1], [0, 0]])), [0.75, 0.0])


def test_iou_of_a_class_absent_from_labels_and_predictions_is_nan() -> None:
    confusion = np.array([[8, 0, 2], [0, 0, 0], [0, 0, 10]])
    np.testing.assert_allclose(iou_per_class(confusion), [0.8, np.nan, 10 / 12])


def test_background_that_cannot_be_labelled_is_nan_but_still_costs_the_class_it_was_predicted_for() -> None:
    confusion = np.array([[0, 0], [5, 15]])
    np.testing.assert_allclose(iou_per_class(confusion, background_evaluated=False), [np.nan, 0.75])
    np.testing.assert_allclose(iou_per_class(confusion, background_evaluated=True), [0.0, 0.75])


def test_iou_leaves_the_confusion_matrix_as_it_was_and_survives_large_counts() -> None:
    confusion = CONFUSION_0 * 10**12
    before = confusion.copy()
    np.testing.assert_allclose(iou_per_class(confusion), [0.8, 0.6, 0.9])
    np.testing.assert_array_equal(confusion, before)


def test_iou_equals_the_per_pixel_form() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 6, 500), rng.integers(0, 5, 500)
    confusion = np.zeros((7, 7), dtype=np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    slow = []
    for c in range(7):
        union = ((labels == c) | (predictions == c)).sum()
        slow.append(((labels == c) & (predictions == c)).sum() / union if union else np.nan)
    np.testing.assert_allclose(iou_per_class(confusion), slow)
    assert slow[5] == 0
    assert np.isnan(slow[6])


def test_a_confusion_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"square.*\(2, 3\)"):
        iou_per_class(np.zeros((2, 3), dtype=np.int64))


def test_mean_iou_leaves_out_nan_and_keeps_zero() -> None:
    assert mean_iou(IOU_2, range(1, 5)) == pytest.approx((0.7 + 0.25 + 0.0) / 3)


def test_mean_iou_of_nothing_is_none() -> None:
    assert mean_iou(IOU_2, []) is None
    assert mean_iou(IOU_2, [2]) is None


def test_harmonic_mean_by_hand_and_at_its_edges() -> None:
    assert harmonic_mean(0.6, 0.3) == pytest.approx(0.4)
    assert harmonic_mean(0.6, 0.0) == 0.0
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(None, 0.5) is None
    assert harmonic_mean(0.5, None) is None


def test_forgetting_is_best_so_far_with_now_included_minus_now() -> None:
    history = [
        np.array([0.8, 0.6, 0.9]),
        np.array([0.9, 0.5, np.nan, 0.5]),
        np.array([0.7, 0.7, 0.4, 0.25, 0.1]),
    ]
    np.testing.assert_allclose(forgetting_per_class(history), [0.2, 0.0, 0.5, 0.25, 0.0], atol=1e-15)


def test_forgetting_is_nan_for_a_class_without_an_iou_now() -> None:
    result = forgetting_per_class([np.array([0.8, 0.6]), np.array([0.8, np.nan, 0.5])])
    np.testing.assert_allclose(result, [0.0, np.nan, 0.0])


def test_base_step_has_no_old_no_incremental_no_hiou_and_no_forgetting() -> None:
    scores = step_scores([iou_per_class(CONFUSION_0)], num_old=0, num_new=3, num_base=3)
    mean, without = (0.8 + 0.6 + 0.9) / 3, (0.6 + 0.9) / 2
    expected = {"miou_all": mean, "miou_new": mean, "miou_base": mean}
    empty = {"miou_old": None, "miou_incremental": None, "hiou": None}
    inner = scores.pop("without_background")
    assert scores == pytest.approx({**expected, **empty, "forgetting": None})
    assert inner == pytest.approx({**dict.fromkeys(expected, without), **empty})


def test_incremental_step_by_hand() -> None:
    history = [iou_per_class(CONFUSION_0), iou_per_class(CONFUSION_1)]
    scores = step_scores(history, num_old=3, num_new=1, num_base=3)
    inner = scores.pop("without_background")
    assert scores == pytest.approx(
        {
            "miou_all": (2 / 3 + 0.5 + 0.0 + 0.5) / 4,
            "miou_old": (2 / 3 + 0.5 + 0.0) / 3,
            "miou_new": 0.5,
            "miou_base": (2 / 3 + 0.5 + 0.0) / 3,
            "miou_incremental": 0.5,
            "hiou": 7 / 16,
            "forgetting": (0.1 + 0.9) / 2,
        }
    )
    assert inner == pytest.approx(
        {
            "miou_all": 1 / 3,
            "miou_old": 0.25,
            "miou_new": 0.5,
            "miou_base": 0.25,
            "miou_incremental": 0.5,
            "hiou": 1 / 3,
        }
    )


def test_third_step_tells_old_from_base_and_new_from_incremental() -> None:
    history = [iou_per_class(CONFUSION_0), iou_per_class(CONFUSION_1), IOU_2]
    scores = step_scores(history, num_old=4, num_new=1, num_base=3)
    inner = scores.pop("without_background")
    assert scores == pytest.approx(
        {
            "miou_all": 1.45 / 4,
            "miou_old": 1.45 / 3,
            "miou_new": 0.0,
            "miou_base": 0.6,
            "miou_incremental": 0.125,
            "hiou": 2 * 0.6 * 0.125 / 0.725,
            "forgetting": (0.0 + 0.25) / 2,  # a is at its best, b has no IoU now
        }
    )
    assert inner["miou_old"] == pytest.approx(0.95 / 2)
    assert inner["miou_base"] == pytest.approx(0.7)
    assert inner["hiou"] == pytest.approx(2 * 0.7 * 0.125 / 0.825)


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("mib", [[1, 2, 3, 4, 5], [1, 2, 3], [4, 5], [1, 2], [3, 4, 5]]),
        ("plop", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [4, 5], [0, 1, 2], [3, 4, 5]]),
        ("mbs", [[0, 1, 2, 3, 4, 5], [1, 2, 3], [4, 5], [1, 2], [3, 4, 5]]),
    ],
)
def test_background_falls_where_the_convention_puts_it(convention: str, expected: list[list[int]]) -> None:
    groups = class_groups(convention, num_old=4, num_base=3, num_classes=6)
    assert list(groups) == ["all", "old", "new", "base", "incremental"]
    assert [list(class_ids) for class_ids in groups.values()] == expected


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("mib", [[1, 2], [], [1, 2], [1, 2], []]),
        ("plop", [[0, 1, 2], [], [0, 1, 2], [0, 1, 2], []]),
        ("mbs", [[0, 1, 2], [], [1, 2], [1, 2], []]),
    ],
)
def test_background_at_step_0(convention: str, expected: list[list[int]]) -> None:
    groups = class_groups(convention, num_old=0, num_base=3, num_classes=3)
    assert [list(class_ids) for class_ids in groups.values()] == expected


def test_hiou_is_zero_where_base_and_incremental_are_zero() -> None:
    scores = step_scores([np.array([0.5, 0.4]), np.zeros(3)], num_old=2, num_new=1, num_base=2)
    assert scores["hiou"] == 0.0
    assert scores["without_background"]["hiou"] == 0.0


def test_background_without_an_iou_gives_the_same_scores_with_and_without_it() -> None:
    history = [np.array([np.nan, 0.4, 0.6]), np.array([np.nan, 0.2, 0.6, 0.5])]
    scores = step_scores(history, num_old=3, num_new=1, num_base=3)
    assert {key: scores[key] for key in scores["without_background"]} == scores["without_background"]
    assert scores["miou_old"] == pytest.approx(0.4)


def test_forgetting_leaves_background_out() -> None:
    scores = step_scores([np.array([0.9, 0.5]), np.array([0.1, 0.3, 0.7])], num_old=2, num_new=1, num_base=2)
    assert scores["forgetting"] == pytest.approx(0.2)


@pytest.mark.parametrize(("num_old", "num_new"), [(2, 1), (3, 2)])
def test_counts_that_contradict_the_ious_are_refused(num_old: int, num_new: int) -> None:
    with pytest.raises(ValueError, match=f"num_new = {num_old + num_new}.*4"):
        step_scores([np.ones(3), np.ones(4)], num_old=num_old, num_new=num_new, num_base=3)


def test_a_history_that_shrinks_is_refused() -> None:
    with pytest.raises(ValueError, match="never shrink"):
        step_scores([np.ones(5), np.ones(4)], num_old=3, num_new=1, num_base=3)


def test_what_is_lost_to_background_is_a_share_of_the_labelled_pixels() -> None:
    np.testing.assert_allclose(lost_to_background(CONFUSION_1), [np.nan, 10 / 40, 5 / 10, 0.0])
    nothing_labelled = np.array([[4, 0], [0, 0]])
    np.testing.assert_array_equal(lost_to_background(nothing_labelled), [np.nan, np.nan])


def test_pixels_of_background_old_and_new_classes_go_where_the_matrix_says() -> None:
    # Background and a are old, b and c new: 75, 40 and 40 pixels.
    expected = [
        [60 / 75, 0, 0, 15 / 75],  # background: 15 to c
        [20 / 40, 10 / 40, 0, 10 / 40],  # a
        [30 / 40, 5 / 40, 0, 5 / 40],  # b and c: 5 of b to c, another new class
    ]
    np.testing.assert_allclose(pixel_flow(CONFUSION_1, num_old=2), expected)


def test_at_step_0_no_class_is_old_and_without_pixels_there_is_no_share() -> None:
    flow = pixel_flow(CONFUSION_0, num_old=0)
    np.testing.assert_allclose(flow[0], [72 / 80, 0, 0, 8 / 80])
    assert np.isnan(flow[1]).all()
    np.testing.assert_allclose(flow[2], [48 / 60, 10 / 60, 0, 2 / 60])
    assert np.isnan(pixel_flow(np.array([[0, 0], [5, 15]]), num_old=0)[0]).all()


def test_confusions_are_ranked_by_the_iou_that_they_cost_both_classes() -> None:
    worst = worst_confusions(CONFUSION_1, 2)
    # Unions: 90, 40, 10, 60.
    assert [(pair.label, pair.predicted) for pair in worst] == [(2, 3), (2, 0)]
    assert [pair.cost for pair in worst] == pytest.approx([5 / 10 + 5 / 60, 5 / 10 + 5 / 90])
    assert [pair.share for pair in worst] == pytest.approx([0.5, 0.5])


def test_only_what_is_confused_is_named_and_absent_classes_cost_nothing() -> None:
    confusion = np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    assert [(pair.label, pair.predicted) for pair in worst_confusions(confusion, 9)] == [(0, 1)]
    assert worst_confusions(np.diag([3, 4]), 9) == []
