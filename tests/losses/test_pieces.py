"""losses/pieces.py: what is computed of a grid, piece by piece, is what is computed of the pixels themselves."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses import fused
from losses.class_groups import class_groups
from losses.entropy_pseudo_label import normalised_entropy
from losses.pieces import Logits, arguments, open_logits, pixel_chunks
from tools.bench.measure import live_bytes
from utils.upsampling import Upsampled

NUM_OLD, NUM_CLASSES, SIZE, EXTENT = 3, 5, (19, 30), (24, 32)


def random_grid(num_classes: int, seed: int) -> Tensor:
    """Seeded logits (2,K,3,4) that need a gradient."""
    generator = torch.Generator().manual_seed(seed)
    grid = 3 * torch.randn(2, num_classes, 3, 4, generator=generator, dtype=torch.float64)
    return grid.requires_grad_()


def pixels_of(grid: Tensor) -> Tensor:
    """PyTorch's interpolation, cropped."""
    return F.interpolate(grid, EXTENT, mode="bilinear")[:, :, : SIZE[0], : SIZE[1]]


def lazy(grid: Tensor) -> Upsampled:
    """The same, computed where it is read."""
    return Upsampled(grid, SIZE, EXTENT)


def random_labels() -> Tensor:
    """Labels (2,19,30) of background, new classes and void."""
    choice = torch.randint(4, (2, *SIZE), generator=torch.Generator().manual_seed(2))
    return torch.tensor([0, 3, 4, 255])[choice]


def cut(num_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a piece hold that many elements: parts of a row, a few rows, or all of them."""
    monkeypatch.setattr("losses.pieces.NUM_ELEMENTS", {"cpu": num_elements})


LOSSES: dict[str, Callable[[Logits, Logits, Tensor], tuple[Tensor, ...]]] = {
    "softmax": lambda new, old, labels: fused.softmax_terms(
        new, targets=labels, old_logits=old, heirs=labels.masked_fill(labels == 255, 0)
    ),
    "unbiased": lambda new, old, labels: fused.unbiased_terms(new, old, labels, 255),
    "binary": lambda new, old, labels: fused.binary_terms(
        new, labels, 255, first_class=NUM_OLD, positive_weight=2.0, old_logits=old
    ),
    "logit": lambda new, old, labels: fused.logit_terms(new, old, labels, 255),
    "groups": lambda new, old, labels: class_groups("softmax", new, labels, NUM_OLD, 255, old),
}


@pytest.mark.parametrize("num_elements", [60, 2 * NUM_CLASSES * 30 * 3, 2**20])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_a_grid_have_the_values_and_gradients_of_its_pixels(
    name: str, num_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old, labels = random_grid(NUM_CLASSES, 0), random_grid(NUM_OLD, 1), random_labels()
    cut(num_elements, monkeypatch)
    found = LOSSES[name](lazy(new), lazy(old), labels)
    expected = LOSSES[name](pixels_of(new), pixels_of(old), labels)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradients = [
        torch.autograd.grad(sum((i + 1) * x.sum() for i, x in enumerate(terms)), new)[0]  # type: ignore[arg-type]
        for terms in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_elements", [60, 2**20])
def test_pseudo_labels_of_a_grid_are_those_of_its_pixels(
    num_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, labels = random_grid(NUM_OLD, 1), random_labels()
    cut(num_elements, monkeypatch)
    thresholds = torch.full((NUM_OLD,), 0.5, dtype=torch.float64)
    for select in (
        lambda x: fused.select_pseudo_labels_in_pieces(labels, x, 0.6, 255),
        lambda x: fused.entropy_pseudo_labels_in_pieces(labels, x, thresholds, 255),
        lambda x: fused.sigmoid_pseudo_labels_in_pieces(labels, x, 0.6),
    ):
        found = select(lazy(old))
        assert torch.equal(found, select(pixels_of(old)))
        assert (found != labels).any()


@pytest.mark.parametrize("num_elements", [60, 2**20])
def test_entropy_of_a_grid_is_that_of_its_pixels(num_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    old = random_grid(NUM_OLD, 1)
    cut(num_elements, monkeypatch)
    found = fused.normalised_entropy_in_pieces(lazy(old))
    torch.testing.assert_close(found, normalised_entropy(pixels_of(old)).detach(), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad


@pytest.mark.parametrize("num_elements", [1, 60, 300, 301, 2**20])
def test_pieces_of_a_grid_are_whole_rows_or_parts_of_one(
    num_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(num_elements, monkeypatch)
    pieces = [piece for piece, _ in pixel_chunks(0, open_logits(*arguments(lazy(random_grid(5, 0)))))]
    assert torch.cat([torch.arange(19 * 30)[piece] for piece in pieces]).equal(torch.arange(19 * 30))
    for piece in pieces:
        rows = piece.start // 30, (piece.stop - 1) // 30
        assert rows[0] == rows[1] or (piece.start % 30, piece.stop % 30) == (0, 0)


def test_a_grid_and_whole_pixels_are_read_in_the_same_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old, labels = random_grid(NUM_CLASSES, 0), random_grid(NUM_OLD, 1), random_labels()
    expected = fused.logit_terms(pixels_of(new), pixels_of(old), labels, 255)
    cut(700, monkeypatch)
    mixed: tuple[tuple[Logits, Logits], ...] = ((lazy(new), pixels_of(old)), (pixels_of(new), lazy(old)))
    for logits, old_logits in mixed:
        found = fused.logit_terms(logits, old_logits, labels, 255)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_of_a_thousand_classes_no_tensor_of_the_image_is_made() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(1, k, 16, 16, generator=generator) for k in (1000, 900))
    new.requires_grad_()
    labels = torch.randint(900, 1000, (1, 256, 256), generator=generator)
    size = 256, 256

    def forward_and_backward() -> None:
        pixels, old_pixels = Upsampled(new, size, size), Upsampled(old, size, size)
        sum(fused.softmax_terms(pixels, targets=labels, old_logits=old_pixels, heirs=labels)).backward()

    all_logits = 1000 * 256 * 256 * new.element_size()
    # The two grids at the width of the image, the gradient of one, and working memory.
    assert live_bytes(forward_and_backward, torch.device("cpu")) < 0.3 * all_logits
