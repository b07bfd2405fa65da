"""losses/decomposed_distillation.py: products one by one, values by hand, and what the sum of both would not notice."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses.decomposed_distillation import decomposed_distillation, reasoning_scores


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def entropy(old: float, new: float) -> float:
    q, p = sigmoid(old), sigmoid(new)
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


def test_scores_are_the_sums_of_the_positive_and_of_the_negative_products() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 3, 4, generator=generator).double()
    tokens = torch.randn(5, 6, generator=generator).double()
    products = features[:, None] * tokens[None, :, :, None, None]  # (B,K,D,h,w)
    positive, negative = reasoning_scores(features, tokens)
    torch.testing.assert_close(positive, products.clamp(min=0).sum(dim=2))
    torch.testing.assert_close(negative, products.clamp(max=0).sum(dim=2))
    torch.testing.assert_close(positive + negative, F.conv2d(features, tokens[:, :, None, None]))


def test_a_change_that_leaves_the_logit_as_it_is_costs() -> None:
    # Old: 2·1 for and 1·1 against the class; new: 3 for and 2 against it. Both logits are 1.
    old_tokens = torch.tensor([[9.0, 9.0], [2.0, -1.0]])
    tokens = torch.tensor([[-5.0, 5.0], [3.0, -2.0], [7.0, 7.0]])  # background and the new class are free
    cell = torch.ones(1, 2, 1, 1)
    total, count = decomposed_distillation(cell, tokens, cell, old_tokens)
    assert count == 1
    assert float(total) == pytest.approx(entropy(2, 3) + entropy(-1, -2))
    kept, _ = decomposed_distillation(cell, old_tokens, cell, old_tokens)
    assert float(kept) == pytest.approx(entropy(2, 2) + entropy(-1, -1))
    assert total > kept


def test_the_gradient_reaches_features_and_old_classes_and_nothing_that_is_old() -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    features, tokens, old_features, old_tokens = (
        normal(2, 4, 3, 3),
        normal(5, 4),
        normal(2, 4, 3, 3),
        normal(3, 4),
    )
    total, count = decomposed_distillation(features, tokens, old_features, old_tokens)
    assert count == 2 * 3 * 3
    found = torch.autograd.grad(total, [features, tokens, old_features, old_tokens], allow_unused=True)
    assert found[0].any()
    assert [bool(row.any()) for row in found[1]] == [False, True, True, False, False]
    assert found[2:] == (None, None)
    kept = features.detach().requires_grad_(), tokens.detach()[:3].requires_grad_()
    total, _ = decomposed_distillation(kept[0], kept[1], kept[0].detach(), kept[1].detach())
    for gradient in torch.autograd.grad(total, kept):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


def test_an_old_model_of_background_alone_asks_nothing() -> None:
    features = torch.ones(1, 2, 3, 3, requires_grad=True)
    total, _ = decomposed_distillation(features, torch.ones(2, 2), features, torch.ones(1, 2))
    assert float(total) == 0
    assert not torch.autograd.grad(total, features)[0].any()


def test_half_precision_is_summed_in_single() -> None:
    features = torch.full((1, 64, 8, 8), 300.0, dtype=torch.float16)
    tokens = torch.full((2, 64), 300.0, dtype=torch.float16)
    total, _ = decomposed_distillation(features, tokens, -features, tokens)
    assert total.dtype == torch.float32
    product = 64 * 300.0 * 300.0  # z⁺ where the old model had 0, and 0 where it had z⁻
    assert float(total) == pytest.approx(64 * (product / 2 + math.log(2)))
