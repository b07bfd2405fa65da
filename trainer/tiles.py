"""Large images in tiles and bands: the memory of a prediction does not grow with the image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import SegmentationModel
from trainer.config import Config
from trainer.inference import predict, predict_all, predict_with_confidence, score_views
from utils.images import UInt8Array

T = TypeVar("T")
Sample = tuple[Tensor, torch.Size, T]
"""What the model sees of an image (3,h,w), the size (H,W) of its classes, and what goes with it."""
Confidence = npt.NDArray[np.float32]


class Prediction(NamedTuple):
    """The class ids (H,W) uint8 of an image, and how probable each is, (H,W) from 0 to 1; None where nobody asked."""

    classes: UInt8Array
    confidence: Confidence | None


LARGEST_SEEN = 2**22
"""Pixels that the model sees at once; activations take kilobytes for each."""
LARGEST_SHOWN = 2**23
"""Pixels of a prediction at once; scores, an index and what lies between take 74 bytes for each."""
SIDE = 1024
"""Of the part of an image that a tile decides, in pixels as the model sees them."""
MARGIN = 256
"""What a tile sees beyond that on every side: its neighbours' context."""
PIXELS_AT_ONCE = 2**20
Positions = tuple[Tensor, Tensor, Tensor]
"""Of pixels between others: the one before, the one after, the share of that."""


def predict_each(
    model: SegmentationModel,
    samples: Iterable[Sample[T]],
    config: Config,
    device: torch.device,
    refuse: Callable[[T], None],
    with_confidence: bool = False,
) -> Iterator[tuple[T, Prediction]]:
    """Yield what goes with every image and its prediction; not quite in order.

    Large images come alone. refuse: takes what goes with an image that is too large for the memory; with_confidence:
    whether probabilities are asked for.
    """
    batch: list[Sample[T]] = []
    for sample in samples:
        if is_large(*sample[:2]):
            yield from _predict_batch(model, [sample], config, device, refuse, with_confidence)
            continue
        batch.append(sample)
        if len(batch) == config.evaluate.batch_size:
            yield from _predict_batch(model, batch, config, device, refuse, with_confidence)
            batch = []
    if batch:
        yield from _predict_batch(model, batch, config, device, refuse, with_confidence)


def _predict_batch(
    model: SegmentationModel,
    batch: Sequence[Sample[T]],
    config: Config,
    device: torch.device,
    refuse: Callable[[T], None],
    with_confidence: bool,
) -> list[tuple[T, Prediction]]:
    """`predict_each` of images that are looked at together; if that is too much for the memory, one by one."""
    try:
        image, size, told = batch[0]
        if is_large(image, size):
            return [(told, predict_tiles(model, image, size, config, device, with_confidence))]
        if with_confidence:
            sure = predict_all(model, iter(batch), config, device, predict_with_confidence)
            return [(told, Prediction(to_ids(classes), p.cpu().numpy())) for told, (classes, p) in sure]
        found = predict_all(model, iter(batch), config, device, predict)
        return [(told, Prediction(to_ids(classes), None)) for told, classes in found]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if len(batch) == 1:
        refuse(batch[0][2])
        return []
    alone = [_predict_batch(model, [sample], config, device, refuse, with_confidence) for sample in batch]
    return [pair for pairs in alone for pair in pairs]


def to_ids(classes: Tensor) -> UInt8Array:
    """Return classes (H,W) of any integer type as uint8 on the CPU."""
    ids: UInt8Array = classes.byte().cpu().numpy()
    return ids


def is_large(seen: Tensor, size: torch.Size) -> bool:
    """Whether an image that the model sees as (3,h,w) and whose classes are (H,W) is predicted in tiles."""
    return seen.shape[1] * seen.shape[2] > LARGEST_SEEN or size.numel() > LARGEST_SHOWN


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, on the GPU or beside it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@torch.inference_mode()
def predict_tiles(
    model: SegmentationModel,
    image: Tensor,
    size: torch.Size,
    config: Config,
    device: torch.device,
    with_confidence: bool = False,
) -> Prediction:
    """Return the prediction, at `size`, of an image (3,h,w) of values 0..255.

    An image of LARGEST_SEEN pixels at most is one tile, which gives what `trainer.inference.predict` gives; of others
    each tile decides SIDE pixels a side and sees MARGIN more.
    """
    height, width = image.shape[1:]
    side = max(height, width) if height * width <= LARGEST_SEEN else SIDE
    classes = np.empty(tuple(size), np.uint8)
    confidence = np.empty(tuple(size), np.float32) if with_confidence else None
    for top in range(0, height, side):
        for left in range(0, width, side):
            above, before = max(0, top - MARGIN), max(0, left - MARGIN)
            tile = image[:, above : top + side + MARGIN, before : left + side + MARGIN]
            scores = score_views(model, tile[None].to(device), config)[0]
            rows, columns = _shown(top, side, height, size[0]), _shown(left, side, width, size[1])
            x = _positions(columns, width, size[1], before, tile.shape[2], device)
            for band in _bands(rows, len(columns)):
                y = _positions(band, height, size[0], above, tile.shape[1], device)
                found, probability = _most_likely(scores, y, x, with_confidence)
                place = np.s_[band.start : band.stop, columns.start : columns.stop]
                classes[place] = found.cpu().numpy()
                if confidence is not None and probability is not None:
                    confidence[place] = probability.cpu().numpy()
    return Prediction(classes, confidence)


def _shown(first: int, side: int, seen: int, shown: int) -> range:
    """The pixels of a prediction's side that a tile decides; a side of `seen` pixels is shown in `shown`."""
    last = min(seen, first + side)
    return range(first * shown // seen, last * shown // seen)


def _bands(rows: range, num_columns: int) -> Iterator[range]:
    """Rows a few at a time, of PIXELS_AT_ONCE pixels at most."""
    step = max(1, PIXELS_AT_ONCE // max(1, num_columns))
    yield from (range(first, min(first + step, rows.stop)) for first in range(rows.start, rows.stop, step))


def _positions(
    pixels: range, seen: int, shown: int, first: int, length: int, device: torch.device
) -> Positions:
    """Where pixels of a prediction lie between those of a tile."""
    at = (torch.arange(pixels.start, pixels.stop, device=device) + 0.5) * (seen / shown) - 0.5 - first
    at = at.clamp(0, length - 1)
    before = at.floor()
    return before.long(), (before.long() + 1).clamp(max=length - 1), at - before


def _most_likely(
    scores: Tensor, y: Positions, x: Positions, with_confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the class (H,W) uint8 that is largest of scores (K,h,w) interpolated bilinearly, the first of equals.

    Second comes how probable it is, by a softmax over the scores, if asked for. Columns come first: there are fewer
    rows to gather them from.
    """
    first, last = int(y[0][0]), int(y[1][-1]) + 1
    highest = torch.full((len(y[0]), len(x[0])), -torch.inf, device=scores.device)
    classes = torch.zeros(highest.shape, dtype=torch.uint8, device=scores.device)
    total = highest.clone()  # the log of the sum that a softmax divides by
    for class_id, shown in enumerate(scores[:, first:last].float()):
        columns = torch.lerp(shown.index_select(1, x[0]), shown.index_select(1, x[1]), x[2])
        above, below = (columns.index_select(0, at - first) for at in y[:2])
        found = torch.lerp(above, below, y[2][:, None])
        classes.masked_fill_(found > highest, class_id)
        torch.maximum(highest, found, out=highest)
        if with_confidence:
            torch.logaddexp(total, found, out=total)
    return classes, (highest - total).exp() if with_confidence else None
