"""datasets/long_side.py: data.long_side reduces larger images and masks on reading, and the class index sees that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import folder
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset
from datasets.long_side import reduce_image, reduce_label, reduced_shape
from tests.support.data import Mask, stripes, write_folder, write_mask
from utils.errors import DataError


def open_reduced(root: Path, masks: dict[str, Mask], long_side: int | None) -> FileDataset:
    """The training split of a folder data set with three classes and lossless images."""
    write_folder(root, ["cat", "dog", "cow"], masks, {}, suffix=".png")
    return replace(folder.open_split(root, "train"), long_side=long_side)


@pytest.mark.parametrize(
    ("shape", "long_side", "expected"),
    [
        ((375, 500), 320, (240, 320)),
        ((500, 375), 320, (320, 240)),
        ((333, 500, 3), 320, (213, 320)),
        ((320, 200), 320, (320, 200)),
        ((10, 20), 320, (10, 20)),
        ((375, 500), None, (375, 500)),
        ((1, 100), 10, (1, 10)),
    ],
)
def test_the_longer_side_is_at_most_the_long_side_and_the_aspect_stays(
    shape: tuple[int, ...], long_side: int | None, expected: tuple[int, int]
) -> None:
    assert reduced_shape(shape, long_side) == expected


def test_a_pixel_of_a_reduced_image_is_the_mean_of_its_area() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :2, 0] = [[10, 20], [30, 40]]
    image[:, 2:, 1] = [[0, 200], [200, 0]]
    assert reduce_image(image, 2).tolist() == [[[25, 0, 0], [0, 100, 0]]]
    thirds = np.array([[0, 90, 180]], np.uint8)[:, :, None].repeat(3, axis=2)
    assert reduce_image(thirds, 2)[0, :, 0].tolist() == [30, 150]  # (0 + 90/2) / 1.5, (90/2 + 180) / 1.5


def test_a_pixel_of_a_reduced_label_is_the_one_under_its_centre() -> None:
    columns = np.arange(7, dtype=np.uint8)[None].repeat(7, axis=0)
    # Centres of 3 pixels over 7 lie at 7/6, 21/6 and 35/6.
    assert reduce_label(columns, 3).tolist() == [[1, 3, 5]] * 3
    assert reduce_label(columns.T, 3).tolist() == [[1] * 3, [3] * 3, [5] * 3]
    colours = np.stack([columns, columns + 100, columns + 200], axis=2)
    assert reduce_label(colours, 3)[0].tolist() == [[1, 101, 201], [3, 103, 203], [5, 105, 205]]


def test_what_is_small_enough_stays_as_it_is() -> None:
    image, label = np.zeros((4, 8, 3), np.uint8), np.zeros((4, 8), np.uint8)
    for long_side in (8, 9, None):
        assert reduce_image(image, long_side) is image
        assert reduce_label(label, long_side) is label


def test_a_data_set_reads_image_and_label_reduced_alike(tmp_path: Path) -> None:
    large, small = stripes(0, 1, 2, 3, height=20, width=40), stripes(3, 0, height=6, width=10)
    dataset = open_reduced(tmp_path, {"large": large, "small": small}, long_side=10)
    whole = replace(dataset, long_side=None)
    image, label = dataset.read("large")
    assert (image.shape, image.dtype, label.shape, label.dtype) == ((5, 10, 3), np.uint8, (5, 10), np.uint8)
    means = whole.read("large")[0].reshape(5, 4, 10, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(image, means, atol=0.5)
    np.testing.assert_array_equal(label, large[2::4, 2::4])
    np.testing.assert_array_equal(dataset.read_label("large"), label)
    for ours, theirs in zip(dataset.read("small"), whole.read("small"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sizes_are_compared_before_they_are_reduced(tmp_path: Path) -> None:
    dataset = open_reduced(tmp_path, {"a": stripes(1, height=20, width=40)}, long_side=10)
    write_mask(tmp_path / "masks" / "train" / "a.png", stripes(1, height=21, width=40))  # both would be 5x10
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        with pytest.raises(DataError, match=r"a\.png: the mask is 40x21 .* is 40x20"):
            read()


def test_the_class_index_shows_what_is_left_of_a_mask_and_no_more(tmp_path: Path) -> None:
    mask = stripes(0, 1, height=40, width=40)
    mask[0, 0] = 2  # vanishes at a quarter of the size
    mask[2, 2] = 3  # lies under a centre, and stays
    dataset = open_reduced(tmp_path, {"a": mask}, long_side=10)
    cache = tmp_path / "cache"
    for long_side, expected in ((10, {0, 1, 3}), (None, {0, 1, 2, 3}), (20, {0, 1}), (10, {0, 1, 3})):
        one = replace(dataset, long_side=long_side)
        assert index_classes(one, cache, 0, progress=False) == {"a": expected}
        assert set(np.unique(one.read_label("a"))) == expected
    assert len(list(cache.iterdir())) == 3, "a long side has a cache of its own"


def test_an_id_that_no_class_has_is_refused_even_where_reducing_would_lose_it(tmp_path: Path) -> None:
    mask = stripes(0, 1, height=40, width=40)
    mask[0, 0] = 9
    dataset = open_reduced(tmp_path, {"a": mask}, long_side=10)
    for read in (lambda: dataset.read("a"), lambda: index_classes(dataset, None, 0, progress=False)):
        with pytest.raises(DataError, match=r"a\.png: found ids \[9\]"):
            read()


def test_a_mask_in_colour_is_reduced_and_indexed_like_one_of_numbers(tmp_path: Path) -> None:
    mask = stripes(0, 1, height=40, width=40)
    mask[0, 0] = 2
    dataset = open_reduced(tmp_path, {"a": mask}, long_side=10)
    numbers = dataset.read_label("a")
    colours = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    (tmp_path / "classes.yaml").write_text(
        "".join(
            f"- {{name: {name}, color: {colour}}}\n"
            for name, colour in zip(dataset.classes, colours, strict=True)
        )
    )
    Image.fromarray(np.array(colours, np.uint8)[mask]).save(tmp_path / "masks" / "train" / "a.png")
    coloured = replace(folder.open_split(tmp_path, "train"), long_side=10)
    np.testing.assert_array_equal(coloured.read_label("a"), numbers)
    assert index_classes(coloured, None, 0, progress=False) == {"a": {0, 1}}
