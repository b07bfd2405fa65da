"""trainer/tiles.py: large images are predicted in tiles, as small ones are at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import SegmentationModel, load_model
from trainer import tiles
from trainer.config import Config, load_config
from trainer.inference import predict, predict_with_confidence
from trainer.tiles import predict_each, predict_tiles

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(finished_run: Path) -> SegmentationModel:
    return load_model(finished_run / "checkpoints" / "step_1.pth")[0]


@pytest.fixture
def config(finished_run: Path) -> Config:
    return load_config(finished_run / "config.yaml", ["evaluate.mode=whole", "evaluate.batch_size=2"])


def never(index: int) -> None:
    pytest.fail(f"image {index} was refused")


def draw(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth image (3,height,width) uint8."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)[0].byte()


@pytest.mark.parametrize("size", [(40, 56), (200, 280), (33, 57)])
def test_one_tile_gives_what_a_prediction_at_once_gives(
    model: SegmentationModel,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
) -> None:
    monkeypatch.setattr(tiles, "PIXELS_AT_ONCE", size[1] * 7)  # seven rows a time
    image = draw(40, 56)
    expected = predict(model, image[None], [torch.Size(size)], config)[0].numpy()
    found, nothing = predict_tiles(model, image, torch.Size(size), config, CPU)
    assert nothing is None
    assert (found.dtype, found.shape) == (np.uint8, size)
    assert np.mean(found != expected) < 1e-3  # rounding, where two classes are as likely
    ((classes, probability),) = predict_with_confidence(model, image[None], [torch.Size(size)], config)
    found, confidence = predict_tiles(model, image, torch.Size(size), config, CPU, with_confidence=True)
    assert np.mean(found != classes.numpy()) < 1e-3
    assert confidence is not None
    np.testing.assert_allclose(confidence, probability.numpy(), atol=1e-4)


@pytest.mark.parametrize("size", [(300, 420), (100, 140), (301, 777)])
@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_tiles_cover_every_pixel_and_agree_with_the_whole(
    model: SegmentationModel,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    mode: str,
) -> None:
    # The tiles' borders fall on windows, and cells, of the whole.
    monkeypatch.setattr(tiles, "LARGEST_SEEN", 1)
    monkeypatch.setattr(tiles, "SIDE", 96)
    monkeypatch.setattr(tiles, "MARGIN", 64)
    stride = 16 if mode == "sliding" else None
    evaluate = config.evaluate.model_copy(update={"mode": mode, "stride": stride, "batch_size": 16})
    config = config.model_copy(update={"evaluate": evaluate})
    image = draw(300, 420)
    expected = predict(model, image[None], [torch.Size(size)], config)[0].numpy()
    found, _ = predict_tiles(model, image, torch.Size(size), config, CPU)
    assert found.shape == size
    # The pooled features of a whole image are those of no tile.
    assert np.mean(found != expected) < (0.02 if mode == "sliding" else 0.5)


def test_large_images_come_alone_and_the_others_together(
    model: SegmentationModel, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "LARGEST_SHOWN", 50 * 50)
    sizes = [(32, 32), (60, 60), (32, 32), (32, 48)]

    def samples() -> Iterator[tuple[Tensor, torch.Size, int]]:
        for index, size in enumerate(sizes):
            yield draw(32, 32, index), torch.Size(size), index

    found = dict(predict_each(model, samples(), config, CPU, never))
    assert {index: prediction.classes.shape for index, prediction in found.items()} == dict(enumerate(sizes))


def test_an_image_too_large_for_the_memory_is_refused_alone(
    model: SegmentationModel, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = type(model).forward

    def failing(self: SegmentationModel, images: Tensor, *more: object, **options: object) -> object:
        if len(images) > 1 or images.float().mean() < 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return forward(self, images, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model), "forward", failing)
    images = [draw(32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8), draw(32, 32, 2)]
    refused: list[int] = []
    samples = [(image, torch.Size((32, 32)), index) for index, image in enumerate(images)]
    found = dict(predict_each(model, samples, config, CPU, refused.append))
    assert (sorted(found), refused) == ([0, 2], [1])


def test_other_errors_are_no_lack_of_memory(model: SegmentationModel, config: Config) -> None:
    with pytest.raises(RuntimeError, match="size"):
        list(predict_each(model, [(torch.zeros(7, 32, 32), torch.Size((32, 32)), 0)], config, CPU, never))
