"""What tests of losses in pieces share."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from losses import class_groups, fused
from losses.pieces import LogitReader


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 5 pixels, the last one shorter, with working memory that holds anything."""

    def pieces(
        num_buffers: int, logits: LogitReader, *others: LogitReader | None
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        batch, channels, num_pixels = logits.shape
        for start in range(0, num_pixels, 5):
            pixels = slice(start, min(start + 5, num_pixels))
            work = torch.full((batch, channels, pixels.stop - start), torch.nan, dtype=logits.dtype)
            yield pixels, [work.clone() for _ in range(num_buffers)]

    monkeypatch.setattr(class_groups, "pixel_chunks", pieces)
    monkeypatch.setattr(fused, "pixel_chunks", pieces)
