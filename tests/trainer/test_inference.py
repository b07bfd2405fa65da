"""trainer/inference.py: windows, flips and scales by hand and against slow forms."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from models import MODELS, ModelOptions, SegmentationModel, SegOutput, build_model
from models.base import Stages
from tests.support.cli import write_tiny_config
from trainer.config import Config, load_config
from trainer.inference import group_by_shape, predict, score_views, score_windows, window_starts

CROP = 8


class Fake(SegmentationModel):
    """A model of nothing but logits; it remembers the shapes of its forward passes."""

    def __init__(self) -> None:
        super().__init__([1], ModelOptions(backbone="test_resnet"))
        self.shapes: list[tuple[int, ...]] = []

    def logits(self, images: Tensor) -> Tensor:
        """Return (B,K,H,W)."""
        raise NotImplementedError

    def forward(self, images: Tensor, with_stages: Stages = False, full_size: bool = True) -> SegOutput:
        self.shapes.append(tuple(images.shape))
        logits = self.logits(images)
        return SegOutput(logits, logits, logits, torch.zeros(logits.shape[1], 1), None)


class Pixelwise(Fake):
    """Four classes, each a random linear function of a pixel's colour."""

    def logits(self, images: Tensor) -> Tensor:
        weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
        return torch.einsum("kc,bchw->bkhw", weight, self.normalise(images))


class InContext(Pixelwise):
    """A pixel's colour is seen against the mean of its left neighbours in the image given, and its place in it."""

    def logits(self, images: Tensor) -> Tensor:
        columns = torch.arange(1, images.shape[3] + 1)
        mean = images.float().cumsum(dim=3) / columns
        place = columns / len(columns) * torch.arange(4)[:, None, None]
        return super().logits(images - mean) + place


class OfWidth(Fake):
    """Two classes; the probability of the second depends on the width of the image alone."""

    def __init__(self, probability: dict[int, float]) -> None:
        super().__init__()
        self.probability = probability

    def logits(self, images: Tensor) -> Tensor:
        p = torch.tensor(self.probability[images.shape[3]])
        logits = torch.stack([(1 - p).log(), p.log()]) + 7  # logits are free up to a constant
        return logits[None, :, None, None].expand(len(images), -1, *images.shape[2:])


def make_config(folder: Path, *overrides: str) -> Config:
    return load_config(write_tiny_config(folder), [f"train.crop_size={CROP}", *overrides])


def random_images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def probabilities(scores: Tensor) -> npt.NDArray[np.float64]:
    """Softmax over the classes (K,H,W), in float64."""
    exponentials = np.exp(scores.double().numpy())
    result: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=0)
    return result


def slide_slowly(
    model: SegmentationModel, image: Tensor, tops: list[int], lefts: list[int]
) -> npt.NDArray[np.float64]:
    """Mean probability of every pixel over the windows at these places that show it, window by window."""
    image = image.float()
    height, width = image.shape[1:]
    canvas = model.pixel_mean.repeat(1, max(CROP, height), max(CROP, width))
    canvas[:, :height, :width] = image
    total: npt.NDArray[np.float64] = np.zeros((4, *canvas.shape[1:]))
    count = np.zeros(canvas.shape[1:])
    for top in tops:
        for left in lefts:
            window = canvas[None, :, top : top + CROP, left : left + CROP]
            total[:, top : top + CROP, left : left + CROP] += probabilities(model(window).logits[0])
            count[top : top + CROP, left : left + CROP] += 1
    return (total / count)[:, :height, :width]


def assert_probabilities(scores: Tensor, expected: npt.NDArray[np.float64]) -> None:
    np.testing.assert_allclose(probabilities(scores), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "stride", "starts"),
    [
        (8, 5, [0]),
        (9, 5, [0, 1]),
        (13, 5, [0, 5]),
        (20, 5, [0, 5, 10, 12]),
        (24, 8, [0, 8, 16]),
        (10, 1, [0, 1, 2]),
    ],
)
def test_windows_start_a_stride_apart_and_the_last_ends_at_the_border(
    side: int, stride: int, starts: list[int]
) -> None:
    assert window_starts(side, CROP, stride) == starts


@pytest.mark.parametrize("side", range(8, 40))
@pytest.mark.parametrize("stride", [1, 3, 6, 8])
def test_windows_cover_every_pixel_and_leave_none_of_them_outside(side: int, stride: int) -> None:
    starts = window_starts(side, CROP, stride)
    assert {pixel for start in starts for pixel in range(start, start + CROP)} == set(range(side))
    assert len(set(starts)) == len(starts)


def test_by_default_scores_are_the_logits_and_the_most_likely_class_is_theirs(tmp_path: Path) -> None:
    images, model = random_images(2, 3, 9, 11), InContext()
    for config in (make_config(tmp_path, "evaluate.mode=whole"), make_config(tmp_path)):
        assert torch.equal(score_views(model, images, config), model(images).logits)
        predictions = predict(model, images, [torch.Size((9, 11)), torch.Size((20, 15))], config)
        assert torch.equal(predictions[0], model(images).logits[0].argmax(dim=0))
        larger = torch.nn.functional.interpolate(model(images).logits, size=(20, 15), mode="bilinear")
        assert torch.equal(predictions[1], larger[1].argmax(dim=0))
        assert [(p.dtype, p.shape) for p in predictions] == [(torch.int64, (9, 11)), (torch.int64, (20, 15))]


def test_where_windows_overlap_their_probabilities_are_averaged(tmp_path: Path) -> None:
    images, model = random_images(2, 3, 9, 20), InContext()
    config = make_config(tmp_path, "evaluate.mode=sliding", "evaluate.stride=5", "evaluate.batch_size=3")
    scores = score_windows(model, images, config)
    for image, found in zip(images, scores, strict=True):
        assert_probabilities(found, slide_slowly(InContext(), image, [0, 1], [0, 5, 10, 12]))
    assert scores.shape == (2, 4, 9, 20)


def test_an_image_smaller_than_a_window_is_padded_with_the_mean_colour(tmp_path: Path) -> None:
    class Means(Fake):
        def logits(self, images: Tensor) -> Tensor:
            mean = self.normalise(images).mean(dim=(1, 2, 3))[:, None, None, None]
            return torch.cat([mean, -mean], dim=1).expand(-1, -1, *images.shape[2:])

    model = Means()
    image = (model.pixel_mean + 2 * model.pixel_std).expand(3, 4, 6)
    scores = score_windows(model, image[None], make_config(tmp_path, "evaluate.mode=sliding"))
    # Normalised, 4 × 6 of the 8 × 8 pixels are 2 and the others 0: logits of ±0.75.
    assert scores.shape == (1, 2, 4, 6)
    assert_probabilities(
        scores[0], np.full((2, 4, 6), [[[1 / (1 + np.exp(-1.5))]], [[1 / (1 + np.exp(1.5))]]])
    )
    assert model.shapes == [(1, 3, 8, 8)]


@pytest.mark.parametrize("shape", [(5, 20), (20, 5)])
def test_an_image_narrower_than_a_window_slides_along_its_length(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    (image,) = images = random_images(1, 3, *shape)
    places = [[0] if side == 5 else [0, 6, 12] for side in shape]
    config = make_config(tmp_path, "evaluate.mode=sliding", "evaluate.stride=6")
    assert_probabilities(
        score_windows(InContext(), images, config)[0], slide_slowly(InContext(), image, *places)
    )


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_windows_of_all_images_share_forward_passes_and_their_number_changes_nothing(
    tmp_path: Path, batch_size: int
) -> None:
    images, model = random_images(3, 3, 8, 13), InContext()
    overrides = ["evaluate.mode=sliding", "evaluate.stride=5"]
    scores = score_windows(
        model, images, make_config(tmp_path, *overrides, f"evaluate.batch_size={batch_size}")
    )
    sizes = {1: [1] * 6, 4: [4, 2], 5: [5, 1], 100: [6]}[batch_size]
    assert model.shapes == [(size, 3, 8, 8) for size in sizes]
    alone = [
        score_windows(model, image[None], make_config(tmp_path, *overrides, "evaluate.batch_size=1"))
        for image in images
    ]
    assert torch.equal(scores, torch.cat(alone))


def test_the_mirrored_view_is_mirrored_back_and_its_probability_averaged(tmp_path: Path) -> None:
    class OfColumn(Fake):
        def logits(self, images: Tensor) -> Tensor:
            p = torch.tensor([0.1, 0.6, 0.8, 0.3])
            return torch.stack([(1 - p).log(), p.log()])[None, :, None].expand(len(images), -1, 2, -1)

    config = make_config(tmp_path, "evaluate.mode=whole", "evaluate.flip=true")
    scores = score_views(OfColumn(), random_images(1, 3, 2, 4), config)[0]
    second = np.tile([0.2, 0.7, 0.7, 0.2], (2, 1))
    assert_probabilities(scores, np.stack([1 - second, second]))


def test_scales_average_probabilities_and_not_logits(tmp_path: Path) -> None:
    model = OfWidth({6: 0.1, 12: 0.1, 18: 0.9999})
    config = make_config(tmp_path, "evaluate.mode=whole", "evaluate.scales=[1.0, 2.0, 3.0]")
    images, sizes = random_images(1, 3, 4, 6), [torch.Size((4, 6))]
    scores = score_views(model, images, config)[0]
    second = (0.1 + 0.1 + 0.9999) / 3
    assert_probabilities(scores, np.full((2, 4, 6), [[[1 - second]], [[second]]]))
    # The mean of the logits would be the second class's.
    assert (predict(model, images, sizes, config)[0] == 0).all()
    assert model.shapes[:3] == [(1, 3, 4, 6), (1, 3, 8, 12), (1, 3, 12, 18)]


@pytest.mark.parametrize("mode", ["center_crop", "whole", "sliding"])
def test_all_views_together_equal_the_slow_form(tmp_path: Path, mode: str) -> None:
    images, model = random_images(2, 3, 9, 13), InContext()
    config = make_config(
        tmp_path, f"evaluate.mode={mode}", "evaluate.flip=true", "evaluate.scales=[0.5, 1.0, 1.7]"
    )
    scores = score_views(model, images, config)
    # 9 x 13 at half is 4 x 6 (4.5 and 6.5 to even), at 1.7 15 x 22; windows of 8, two thirds of it, 6, apart.
    views = [((4, 6), [0], [0]), ((9, 13), [0, 1], [0, 5]), ((15, 22), [0, 6, 7], [0, 6, 12, 14])]
    for image, found in zip(images, scores, strict=True):
        expected = np.zeros((4, 9, 13))
        for size, tops, lefts in views:
            for flipped in (False, True):
                view = image if size == (9, 13) else V.resize(image.float(), list(size), antialias=True)
                view = V.horizontal_flip(view) if flipped else view
                if mode == "sliding":
                    view_scores = torch.tensor(np.log(slide_slowly(model, view, tops, lefts)))
                else:
                    view_scores = model(view[None]).logits[0].double()
                view_scores = view_scores.flip(2) if flipped else view_scores
                view_scores = torch.nn.functional.interpolate(view_scores[None], (9, 13), mode="bilinear")[0]
                expected += probabilities(view_scores) / 6
        assert_probabilities(found, expected)


@pytest.mark.parametrize("flip", ["false", "true"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pixelwise_model_says_the_same_in_windows_mirrored_and_at_once(
    tmp_path: Path, flip: str, batch_size: int
) -> None:
    images, model = random_images(3, 3, 8, 21), Pixelwise()
    sizes = [torch.Size(size) for size in ((8, 21), (17, 43), (5, 12))]
    expected = predict(model, images, sizes, make_config(tmp_path, "evaluate.mode=whole"))
    overrides = [f"evaluate.flip={flip}", f"evaluate.batch_size={batch_size}", "evaluate.scales=[1.0]"]
    for mode in (["evaluate.mode=whole"], ["evaluate.mode=sliding", "evaluate.stride=5"]):
        config = make_config(tmp_path, *mode, *overrides)
        for ours, theirs in zip(predict(model, images, sizes, config), expected, strict=True):
            assert torch.equal(ours, theirs)
    assert {int(c) for prediction in expected for c in prediction.unique()} == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "backbone"), [("deeplabv3", "test_resnet"), ("segmenter", "test_vit")])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_every_model_and_precision_gives_finite_scores_in_float32(
    tmp_path: Path, name: str, backbone: str, amp: str
) -> None:
    options = {"backbone": backbone, "pretrained": False, "channels": 8}
    if name == "segmenter":
        options |= {"patch_size": 8, "num_blocks": 1, "num_heads": 2, "drop_path": 0.0}
    model = build_model(MODELS[name].Options(name=name, **options), [3, 2], 32).eval()
    config = make_config(
        tmp_path,
        *("train.crop_size=32", f"train.amp={amp}"),
        *("evaluate.mode=sliding", "evaluate.flip=true", "evaluate.scales=[0.5, 1.25]"),
    )
    images, sizes = random_images(2, 3, 32, 43), [torch.Size((50, 67)), torch.Size((32, 43))]
    with torch.inference_mode():
        scores = score_views(model, images, config)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    predictions = predict(model, images, sizes, config)
    assert [prediction.shape for prediction in predictions] == sizes
    assert torch.equal(predictions[1], scores[1].argmax(dim=0))


def test_images_of_one_shape_are_grouped_in_their_order() -> None:
    shapes = [(3, 4, 5), (3, 5, 4), (3, 4, 5), (3, 4, 4), (3, 5, 4)]
    assert list(group_by_shape([torch.zeros(shape) for shape in shapes])) == [[0, 2], [1, 4], [3]]
