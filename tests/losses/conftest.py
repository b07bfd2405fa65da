"""What tests of losses in pieces share."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from losses import class_groups, fused


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 5 pixels, the last one shorter, with working memory that holds anything."""

    def pieces(logits: Tensor, num_buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        for start in range(0, logits.shape[2], 5):
            pixels = slice(start, min(start + 5, logits.shape[2]))
            work = torch.full_like(logits[..., pixels], torch.nan, dtype=dtype)
            yield pixels, [work.clone() for _ in range(num_buffers)]

    monkeypatch.setattr(class_groups, "pixel_chunks", pieces)
    monkeypatch.setattr(fused, "pixel_chunks", pieces)
