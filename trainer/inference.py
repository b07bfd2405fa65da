"""What a model says of images: one forward pass, sliding windows, flipped and scaled views, at any size asked for.

Scores (B,K,H,W) are log-probabilities up to a constant a pixel, as logits are: neither that constant nor bilinear
interpolation of it changes which class is the most likely.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models import SegmentationModel, SegOutput
from models.output import most_likely, upsample
from trainer.config import Config

T = TypeVar("T")
Found = TypeVar("Found")


AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What `train.amp` computes in, once `auto` is settled."""


def autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision as the config asks for it."""
    return torch.autocast(device.type, dtype=AMP_DTYPES[amp], enabled=amp != "off")


@torch.inference_mode()
def predict(
    model: SegmentationModel,
    images: Tensor,
    sizes: Sequence[torch.Size],
    config: Config,
) -> list[Tensor]:
    """Return for every image the most likely class (H,W) int64 of each pixel, at its own size of `sizes`.

    images: (B,3,h,w) of values 0..255; `config` says how they are looked at (`evaluate`) and in which precision.
    """
    evaluate, own_size = config.evaluate, images.shape[2:]
    is_single_view = evaluate.mode != "sliding" and not evaluate.flip and evaluate.scales == [1.0]
    if is_single_view and all(size == own_size for size in sizes):
        # The literature's protocol: nothing but the largest class is asked of the logits.
        return list(model.most_likely(_forward(model, images, config, full_size=False).grid_logits, own_size))
    scores = score_views(model, images, config)
    return [
        scores[i].max(dim=0).indices if size == own_size else most_likely(scores[i : i + 1], size)[0]
        for i, size in enumerate(sizes)
    ]


@torch.inference_mode()
def predict_with_confidence(
    model: SegmentationModel, images: Tensor, sizes: Sequence[torch.Size], config: Config
) -> list[tuple[Tensor, Tensor]]:
    """Return for every image what `predict` gives, and how probable each pixel's class is, (H,W) from 0 to 1.

    The probability is that of a softmax over the scores.
    """
    found = []
    for scores, size in zip(score_views(model, images, config).split(1), sizes, strict=True):
        shown = scores if scores.shape[2:] == size else upsample(scores, size)
        probability, classes = shown.softmax(dim=1).max(dim=1)
        found.append((classes[0], probability[0]))
    return found


def predict_all(
    model: SegmentationModel,
    samples: Iterable[tuple[Tensor, torch.Size, T]],
    config: Config,
    device: torch.device,
    look: Callable[[SegmentationModel, Tensor, Sequence[torch.Size], Config], list[Found]],
) -> Iterator[tuple[T, Found]]:
    """Yield what goes with each image and what `look` says of it, `predict` or another; not quite in order.

    samples: image (3,h,w), the size (H,W) of its classes, and what goes with it. Of every `evaluate.batch_size`
    images, those of one shape share a forward pass; of sliding windows, so many do.
    """
    samples = iter(samples)
    while batch := list(itertools.islice(samples, config.evaluate.batch_size)):
        for group in group_by_shape([image for image, _, _ in batch]):
            size = images_at_once(batch[group[0]][0].shape[1:], config)
            for indices in (group[start : start + size] for start in range(0, len(group), size)):
                images = torch.stack([batch[i][0].to(device, non_blocking=True) for i in indices])
                sizes = [batch[i][1] for i in indices]
                predictions = look(model, images, sizes, config)
                yield from ((batch[i][2], found) for i, found in zip(indices, predictions, strict=True))


def images_at_once(size: torch.Size, config: Config) -> int:
    """Return how many images (h,w) to look at together, of which scores are kept, K floats a pixel.

    A batch of them; where they are looked at in windows or at another size than the crop, as many as a batch of crops
    has pixels for: a batch of large images would take gigabytes.
    """
    batch_size = config.evaluate.batch_size
    if config.evaluate.mode != "sliding" and config.evaluate.short_side == "crop":
        return batch_size
    return math.ceil(batch_size * config.train.crop_size**2 / (size[0] * size[1]))


def score_views(model: SegmentationModel, images: Tensor, config: Config) -> Tensor:
    """Return scores (B,K,h,w) of images (B,3,h,w): their mean probability over the scaled and flipped views."""
    flips = (False, True) if config.evaluate.flip else (False,)
    views = list(itertools.product(config.evaluate.scales, flips))
    # One view at a time: what is averaged is as large as the logits of a forward pass.
    scores = (_score_view(model, images, scale, flipped, config) for scale, flipped in views)
    if len(views) == 1:
        return next(scores)
    return reduce(torch.logaddexp, (view.log_softmax(dim=1) for view in scores))


def _score_view(
    model: SegmentationModel, images: Tensor, scale: float, flipped: bool, config: Config
) -> Tensor:
    """Scores (B,K,h,w) of one view of the images, turned back."""
    size = images.shape[2:]
    if scale != 1:
        scaled = [max(1, round(side * scale)) for side in size]
        images = F.interpolate(images.float(), scaled, mode="bilinear", align_corners=False, antialias=True)
    if flipped:
        images = images.flip(3)
    scores = (
        score_windows(model, images, config)
        if config.evaluate.mode == "sliding"
        else _forward(model, images, config).logits
    )
    scores = scores.flip(3) if flipped else scores
    return scores if scores.shape[2:] == size else upsample(scores, size)


def score_windows(model: SegmentationModel, images: Tensor, config: Config) -> Tensor:
    """Return scores (B,K,h,w) of images (B,3,h,w): their mean probability over the windows that show a pixel.

    Windows have the side `train.crop_size` and lie `evaluate.stride` apart, the last of a row or column at the
    border; `evaluate.batch_size` of them share a forward pass. Images smaller than a window are padded at the right
    and the bottom with the mean colour.
    """
    crop, (height, width) = config.train.crop_size, images.shape[2:]
    images = _pad(images, max(crop, height), max(crop, width), model.pixel_mean)
    starts = [window_starts(side, crop, config.evaluate.window_stride(crop)) for side in images.shape[2:]]
    windows = itertools.product(range(len(images)), *starts)
    total: Tensor | None = None
    while places := list(itertools.islice(windows, config.evaluate.batch_size)):
        batch = torch.stack([images[i, :, y : y + crop, x : x + crop] for i, y, x in places])
        scores = _forward(model, batch, config).logits.log_softmax(dim=1)
        if total is None:
            shape = (len(images), scores.shape[1], *images.shape[2:])
            total = scores.new_full(shape, -torch.inf)
        for (i, y, x), window in zip(places, scores, strict=True):
            # The log of a sum of probabilities; how many they are is the same for all classes of a pixel.
            covered = total[i, :, y : y + crop, x : x + crop]
            torch.logaddexp(covered, window, out=covered)
    assert total is not None
    return total[:, :, :height, :width]


def window_starts(side: int, crop: int, stride: int) -> list[int]:
    """Return where windows of `crop` pixels start that cover `side` ≥ crop pixels, at most `stride` apart."""
    return [*range(0, side - crop, stride), side - crop]


def group_by_shape(images: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the indices of the images of each shape."""
    indices: dict[torch.Size, list[int]] = {}
    for index, image in enumerate(images):
        indices.setdefault(image.shape, []).append(index)
    yield from indices.values()


def _forward(model: SegmentationModel, images: Tensor, config: Config, full_size: bool = True) -> SegOutput:
    with autocast(config.train.amp, images.device):
        output: SegOutput = model(images, full_size=full_size)
    return output


def _pad(images: Tensor, height: int, width: int, colour: Tensor) -> Tensor:
    """Images (B,3,h,w) at the top left of (B,3,height,width) of `colour` (3,1,1)."""
    if images.shape[2:] == (height, width):
        return images
    padded = colour.expand(len(images), -1, height, width).clone()
    padded[:, :, : images.shape[2], : images.shape[3]] = images
    return padded
