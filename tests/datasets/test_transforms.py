"""datasets/transforms.py: image and label stay aligned, padding is told apart, randomness is the generator's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datasets.transforms import EvaluateTransform, TrainTransform, Window, resize_short_side
from utils.images import UInt8Array

BLOCK = 20
FILL = (10.0, 20.0, 250.4)


def coordinates(rows: int, columns: int) -> tuple[UInt8Array, UInt8Array]:
    """An image whose red is the row and green the column, blue 0; a label that numbers blocks, from 1."""
    y, x = np.mgrid[0:rows, 0:columns]
    image = np.stack([y, x, np.zeros_like(y)], axis=2).astype(np.uint8)
    label = 1 + y // BLOCK * (columns // BLOCK) + x // BLOCK
    return image, label.astype(np.uint8)


def draw(transform: TrainTransform, image: UInt8Array, label: UInt8Array, seed: int) -> tuple[Tensor, Tensor]:
    return transform(image, label, torch.Generator().manual_seed(seed))


def natural(rows: int, columns: int, seed: int = 0) -> tuple[UInt8Array, UInt8Array]:
    """An image as smooth as a photograph, (rows,columns,3), and a label of blobs."""
    noise = np.random.default_rng(seed).normal(size=(4, rows, columns))
    y, x = np.meshgrid(np.fft.fftfreq(rows), np.fft.fftfreq(columns), indexing="ij")
    # The amplitudes of natural images, blurred a little as by a lens.
    spectrum = np.maximum(np.hypot(y, x), 1 / max(rows, columns)) ** -1.5
    waves = np.fft.ifft2(np.fft.fft2(noise) * spectrum).real
    waves = waves / np.maximum(waves.std(axis=(1, 2), keepdims=True), 1e-9)
    image = np.clip(128 + 55 * waves[:3], 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(image), np.clip(2 + 2 * waves[3], 0, 4).astype(np.uint8)


def resize_then_crop(
    transform: TrainTransform, image: UInt8Array, label: UInt8Array, seed: int
) -> tuple[Tensor, Tensor]:
    """The plain form: the whole image is resized, padded, cropped and flipped."""
    scale, top, left, flip = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    crop = transform.crop_size
    short_side = round(crop * (transform.min_scale + scale * (transform.max_scale - transform.min_scale)))
    x, y = torch.tensor(image).permute(2, 0, 1), torch.tensor(label)[None]
    x = resize_short_side(x, short_side, InterpolationMode.BILINEAR)
    y = resize_short_side(y, short_side, InterpolationMode.NEAREST_EXACT)
    missing = [max(0, crop - side) for side in x.shape[-2:]]
    above, before = int(top * (missing[0] + 1)), int(left * (missing[1] + 1))
    padding = [before, above, missing[1] - before, missing[0] - above]
    x = F.pad(x, padding, fill=[round(colour) for colour in transform.fill])
    y = F.pad(y, padding, fill=255)
    first_row, first_column = (
        int(position * (side - crop + 1)) for position, side in zip((top, left), x.shape[-2:], strict=True)
    )
    x, y = (F.crop(z, first_row, first_column, crop, crop) for z in (x, y))
    return (F.horizontal_flip(x), F.horizontal_flip(y)[0]) if flip < 0.5 else (x, y[0])


def measure(label: Tensor) -> tuple[float, bool]:
    """Scale, and whether flipped, of a crop from a label that holds its own column, wherever the image lies in it."""
    row = label.amin(dim=0).long()  # padding is 255, more than any column
    row = row[row != 255]
    # The source's short side of 250 over the crop's 50 makes 5 columns a pixel at scale 1.
    step = float(row[-1] - row[0]) / (len(row) - 1)
    return 5 / abs(step), step < 0


@pytest.mark.parametrize("seed", range(20))
def test_image_and_label_stay_aligned(seed: int) -> None:
    image, label = coordinates(120, 160)
    x, y = draw(TrainTransform(64, 0.5, 2.0, FILL), image, label, seed)
    assert x.permute(1, 2, 0).is_contiguous(), "colours side by side"
    assert x.shape == (3, 64, 64)
    assert y.shape == (64, 64)
    assert x.dtype == y.dtype == torch.uint8
    valid = y != 255
    block = y[valid].long() - 1
    # Half a block around its centre, and what antialiasing blurs at the border of the source.
    slack = BLOCK / 2 + 3
    assert ((x[0][valid] - (block // 8 * BLOCK + 9.5)).abs() <= slack).all()
    assert ((x[1][valid] - (block % 8 * BLOCK + 9.5)).abs() <= slack).all()


@pytest.mark.parametrize("seed", range(10))
def test_padding_has_the_mean_colour_and_label_255_and_nothing_else_has(seed: int) -> None:
    image, label = coordinates(120, 160)
    x, y = draw(TrainTransform(64, 0.4, 0.6, FILL), image, label, seed)
    is_padding = y == 255
    assert is_padding.any()
    assert torch.equal(x[2] == 250, is_padding)
    assert (x[:, is_padding] == torch.tensor([[10], [20], [250]])).all()
    assert 0.35 * 64 <= (~is_padding).any(dim=1).sum() <= 0.65 * 64, "rows of the image itself"


def test_a_small_image_lies_anywhere_in_the_crop_and_whole() -> None:
    image = np.full((30, 30, 3), 7, dtype=np.uint8)
    label = np.full((30, 30), 3, dtype=np.uint8)
    transform = TrainTransform(6, 2 / 3, 2 / 3, FILL)  # 4 x 4 pixels in a crop of 6 x 6
    places = set()
    for seed in range(100):
        x, y = draw(transform, image, label, seed)
        rows, columns = torch.nonzero(y == 3, as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        places.add((top, left))
        assert len(rows) == 16
        assert (y[top : top + 4, left : left + 4] == 3).all()
        assert torch.equal(x[0] == 7, y == 3)
    assert places == {(top, left) for top in range(3) for left in range(3)}, "all four corners, and between"


@pytest.mark.parametrize("seed", range(40))
def test_cropping_before_resizing_gives_what_cropping_after_it_gives(seed: int) -> None:
    image, label = natural(150, 200, seed)
    transform = TrainTransform(200, 0.5, 2.0, FILL)
    x, y = draw(transform, image, label, seed)
    plain_x, plain_y = resize_then_crop(transform, image, label, seed)
    assert torch.equal(y, plain_y)
    assert (x.int() - plain_x.int()).abs().float().mean() < 2, "grey levels"


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32), rows=st.integers(1, 60), columns=st.integers(1, 60), crop=st.integers(1, 40)
)
def test_where_the_grids_are_the_same_so_is_every_pixel(
    seed: int, rows: int, columns: int, crop: int
) -> None:
    image, label = natural(rows, columns, seed)
    # Whole images in the crop, or images whose pixels are cut into as many parts each.
    short = min(rows, columns)
    for transform in (
        TrainTransform(60, short / 60, short / 60, FILL),
        TrainTransform(short, 3.0, 3.0, FILL),
    ):
        ours, plain = draw(transform, image, label, seed), resize_then_crop(transform, image, label, seed)
        assert torch.equal(ours[1], plain[1])
        assert (ours[0].int() - plain[0].int()).abs().max() <= 1


@settings(deadline=None, max_examples=200)
@given(
    source=st.integers(1, 3000),
    side=st.integers(1, 3000),
    crop=st.integers(1, 600),
    position=st.floats(0, 1, exclude_max=True),
)
def test_a_window_covers_the_crop_and_its_grid_is_off_by_less_than_a_pixel(
    source: int, side: int, crop: int, position: float
) -> None:
    window = Window.draw(source, side, crop, position)
    length = min(side, crop)
    assert 0 <= window.source.start < window.source.stop <= source
    assert 0 <= window.seen.start < window.seen.stop <= window.side
    assert window.seen.stop - window.seen.start == window.target.stop - window.target.start == length
    assert 0 <= window.target.start <= window.target.stop <= crop
    # Where the crop's first and last pixel lie in the image, here and on the grid of the whole side.
    first = int(position * (max(0, side - crop) + 1))
    step = (window.source.stop - window.source.start) / window.side
    for index in (0, length - 1):
        ours = window.source.start + (window.seen.start + index + 0.5) * step
        assert abs(ours - (first + index + 0.5) * source / side) <= max(0.5 * source / side, 1e-6)


def test_ignored_pixels_of_the_label_stay_ignored_and_ids_are_never_mixed() -> None:
    label = np.array([[0, 255], [7, 3]], dtype=np.uint8).repeat(30, axis=0).repeat(30, axis=1)
    image = label[:, :, None].repeat(3, axis=2)
    seen = {
        int(i)
        for seed in range(10)
        for i in draw(TrainTransform(48, 1.0, 1.5, FILL), image, label, seed)[1].unique()
    }
    assert seen == {0, 3, 7, 255}


def test_the_generator_alone_decides() -> None:
    image, label = coordinates(120, 160)
    transform = TrainTransform(64, 0.5, 2.0, FILL)
    x, y = draw(transform, image, label, seed=5)
    torch.manual_seed(123)
    x_again, y_again = draw(transform, image, label, seed=5)
    assert torch.equal(x, x_again)
    assert torch.equal(y, y_again)
    assert not torch.equal(draw(transform, image, label, seed=6)[1], y)


def test_the_input_is_left_as_it_was_even_where_memory_is_read_only() -> None:
    image, label = coordinates(120, 160)
    image.flags.writeable = label.flags.writeable = False
    before = image.copy(), label.copy()
    draw(TrainTransform(64, 0.5, 2.0, FILL), image, label, seed=0)
    EvaluateTransform(64, "center_crop")(image, label)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_scales_span_their_range_and_half_of_the_images_are_flipped() -> None:
    columns = np.tile(np.arange(250, dtype=np.uint8), (250, 1))
    transform = TrainTransform(50, 0.5, 2.0, FILL)
    image = columns[:, :, None].repeat(3, axis=2)
    draws = [measure(draw(transform, image, columns, seed)[1]) for seed in range(200)]
    scales = np.array([scale for scale, _ in draws])
    assert 0.45 < scales.min() < 0.56
    assert 1.9 < scales.max() < 2.1
    assert abs(np.median(scales) - 1.25) < 0.15
    assert 0.4 < np.mean([flipped for _, flipped in draws]) < 0.6


def test_crops_reach_every_corner() -> None:
    image, label = coordinates(120, 160)
    transform = TrainTransform(64, 2.0, 2.0, FILL)
    seen = {int(i) for seed in range(150) for i in draw(transform, image, label, seed)[1].unique()}
    assert seen == set(range(1, 49))


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (1, 2), (3, 2), (1, 300), (300, 1), (700, 900), (16, 16)]
)
def test_tiny_huge_and_narrow_images_give_crops_of_the_asked_size(rows: int, columns: int) -> None:
    image = np.full((rows, columns, 3), 77, dtype=np.uint8)
    label = np.full((rows, columns), 4, dtype=np.uint8)
    for seed in range(4):
        x, y = draw(TrainTransform(16, 0.5, 2.0, FILL), image, label, seed)
        assert x.shape == (3, 16, 16)
        assert y.shape == (16, 16)
        assert (x[:, y == 4] == 77).all()
        assert set(y.unique().tolist()) <= {4, 255}
    x, y = EvaluateTransform(16, "center_crop")(image, label)
    assert x.shape == (3, 16, 16)
    assert (y == 4).all()


@pytest.mark.parametrize(
    ("shape", "expected"), [((40, 80), (20, 40)), ((80, 41), (39, 20)), ((20, 20), (20, 20))]
)
def test_the_short_side_is_resized_and_the_aspect_ratio_kept(
    shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    x = torch.zeros(1, *shape, dtype=torch.uint8)
    assert resize_short_side(x, 20, InterpolationMode.BILINEAR).shape == (1, *expected)


def test_the_centre_crop_is_the_middle_of_image_and_label() -> None:
    image, label = coordinates(60, 100)
    x, y = EvaluateTransform(60, "center_crop")(image, label)
    np.testing.assert_array_equal(x.permute(1, 2, 0).numpy(), image[:, 20:80])
    np.testing.assert_array_equal(y.numpy(), label[:, 20:80])


def test_the_centre_crop_of_a_larger_image_takes_every_other_pixel() -> None:
    image, label = coordinates(120, 200)
    x, y = EvaluateTransform(60, "center_crop")(image, label)
    np.testing.assert_array_equal(y.numpy(), label[1::2, 1::2][:, 20:80])
    centre = image[:, 40:160].reshape(60, 2, 60, 2, 3).mean(axis=(1, 3))
    assert np.abs(x.permute(1, 2, 0).numpy()[1:-1, 1:-1] - centre[1:-1, 1:-1]).max() <= 1


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_the_short_side_may_be_another_than_the_crop_or_stay_as_it_is(mode: str) -> None:
    image, label = coordinates(120, 160)
    x, y = EvaluateTransform(60, mode, "own")(image, label)
    np.testing.assert_array_equal(x.permute(1, 2, 0).numpy(), image)
    np.testing.assert_array_equal(y.numpy(), label)
    x, y = EvaluateTransform(60, mode, 90)(image, label)
    expected = resize_short_side(torch.tensor(image).permute(2, 0, 1), 90, InterpolationMode.BILINEAR)
    assert torch.equal(x, expected)
    np.testing.assert_array_equal(y.numpy(), label)


def test_whole_resizes_the_image_and_leaves_the_label_untouched() -> None:
    image, label = coordinates(120, 160)
    x, y = EvaluateTransform(60, "whole")(image, label)
    assert x.shape == (3, 60, 80)
    np.testing.assert_array_equal(y.numpy(), label)
