"""utils/images.py: the colour map of VOC, and masks as Pillow decodes them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.errors import DataError
from utils.images import make_palette, open_mask


def test_the_palette_is_the_colour_map_of_voc() -> None:
    palette = make_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_mask_of_one_channel_gives_the_numbers_that_it_stores(tmp_path: Path, mode: str) -> None:
    numbers = np.array([[0, 3, 255], [7, 7, 1]], np.uint8)
    image = Image.fromarray(numbers)
    if mode == "P":
        image.putpalette([9, 9, 9] * 256)
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.array(open_mask(tmp_path / "mask.png")), numbers)


def test_a_mask_in_rgb_is_opened_only_where_colours_are_asked_for(tmp_path: Path) -> None:
    Image.new("RGB", (2, 1), (1, 2, 3)).save(tmp_path / "mask.png")
    assert np.array(open_mask(tmp_path / "mask.png", in_colour=True)).tolist() == [[[1, 2, 3], [1, 2, 3]]]
    with pytest.raises(DataError, match=r"mask\.png: a mask must be an 8-bit PNG .* found a PNG of mode RGB"):
        open_mask(tmp_path / "mask.png")


def test_a_mask_that_is_cut_short_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"mask\.png: not a mask that Pillow can decode"):
        open_mask(path)
