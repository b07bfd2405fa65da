"""datasets/shapes.py: drawn data that is the same everywhere, and in which background shift really happens."""

import numpy as np
import pytest

from datasets.shapes import CLASSES, PALETTE, ShapesDataset

TRAIN = ShapesDataset("train", num_images=120, image_size=48)
SHOWN = [set(np.unique(TRAIN.read_label(image_id)).tolist()) - {0} for image_id in TRAIN.ids]


def test_an_image_is_drawn_the_same_every_time_and_in_any_order() -> None:
    forwards = {image_id: TRAIN.read(image_id) for image_id in TRAIN.ids[:8]}
    longer = ShapesDataset("train", num_images=10_000, image_size=48)
    for image_id in reversed(TRAIN.ids[:8]):
        image, label = longer.read(image_id)
        np.testing.assert_array_equal(image, forwards[image_id][0])
        np.testing.assert_array_equal(label, forwards[image_id][1])
        np.testing.assert_array_equal(longer.read_label(image_id), label)


def test_images_have_the_asked_size_and_are_uint8() -> None:
    image, label = ShapesDataset("val", 1, image_size=33).read("val_00000")
    assert image.shape == (33, 33, 3)
    assert label.shape == (33, 33)
    assert image.dtype == label.dtype == np.uint8


def test_train_val_and_another_seed_show_other_images() -> None:
    splits = [TRAIN, ShapesDataset("val", 120, 48), ShapesDataset("train", 120, 48, seed=1)]
    firsts = [dataset.read(dataset.ids[0])[0] for dataset in splits]
    assert not np.array_equal(firsts[0], firsts[1])
    assert not np.array_equal(firsts[0], firsts[2])
    assert splits[1].ids[0] == "val_00000"


def test_no_two_images_are_the_same() -> None:
    assert len({TRAIN.read(image_id)[0].tobytes() for image_id in TRAIN.ids}) == len(TRAIN.ids)


def test_label_ids_are_those_of_the_classes_and_background_is_everywhere() -> None:
    for image_id in TRAIN.ids:
        ids = np.unique(TRAIN.read_label(image_id))
        assert ids[0] == 0
        assert ids[-1] < len(CLASSES) == len(PALETTE)


@pytest.mark.parametrize("class_id", range(1, len(CLASSES)))
def test_every_class_occurs_in_about_as_many_images(class_id: int) -> None:
    # 2 to 4 objects of 6 classes: 1 - mean of (5/6)^n over n = 2, 3, 4 is 0.415.
    assert 0.25 < np.mean([class_id in classes for classes in SHOWN]) < 0.6


def test_most_images_show_two_classes_or_more() -> None:
    # All objects of one class: mean of (1/6)^(n-1) over n = 2, 3, 4 is 0.066; a few more are covered.
    assert np.mean([len(classes) >= 2 for classes in SHOWN]) > 0.85


def test_the_background_of_a_step_holds_old_and_future_classes() -> None:
    base = [classes for classes in SHOWN if classes & {1, 2, 3, 4}]
    last = [classes for classes in SHOWN if 6 in classes]
    assert np.mean([bool(classes & {5, 6}) for classes in base]) > 0.4
    assert np.mean([bool(classes & {1, 2, 3, 4}) for classes in last]) > 0.7


def test_objects_stand_out_from_the_background() -> None:
    inside, outside = [], []
    for image_id in TRAIN.ids[:30]:
        image, label = TRAIN.read(image_id)
        spread = image.astype(float).max(axis=2) - image.min(axis=2)
        inside.append(spread[label > 0].mean())
        outside.append(spread[label == 0].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)
