"""The reference values of shared/golden: seeded inputs and what the method's released code gives for them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.paths import GOLDEN, METHODS_GOLDEN

GOLDEN_DIR = GOLDEN
# Stored as (B, h*w, D) with h = w; the losses take maps.
PATCH_KEYS = ("in_patches", "in_patches_prev", "out_grad_afd")

each_golden_case = pytest.mark.parametrize("case", [0, 1])


def load_golden(case: int) -> dict[str, Tensor]:
    """Return the tensors of golden/case{case}.npz, patches as (B,D,h,w), scalars 0-d; skip where it is absent."""
    path = GOLDEN_DIR / f"case{case}.npz"
    if not path.is_file():
        pytest.skip(f"reference values are not here: {path.name} is absent from shared/golden")
    with np.load(path) as arrays:
        tensors = {name: torch.as_tensor(arrays[name]) for name in arrays}
    return tensors | {name: patches_to_map(tensors[name]) for name in PATCH_KEYS}


def load_rival(name: str) -> dict[str, Tensor]:
    """Return the tensors of golden/rivals/{name}.npz as they are stored; skip where it is absent."""
    path = GOLDEN_DIR / "rivals" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"reference values are not here: {path.name} is absent from shared/golden/rivals")
    with np.load(path) as arrays:
        return {key: torch.as_tensor(arrays[key]) for key in arrays}


def patches_to_map(patches: Tensor) -> Tensor:
    """Turn (B, h*w, D) row-major patches of a square grid into (B,D,h,w)."""
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (side, side)).contiguous()


def assert_matches_golden(actual: Tensor, expected: Tensor) -> None:
    """Assert that every entry agrees to 1e-5 of itself; near 0, to 1e-6 of the largest (float32's own noise)."""
    expected = expected.double()
    atol = 1e-6 * expected.abs().max().item()
    torch.testing.assert_close(actual.detach().double(), expected, rtol=1e-5, atol=atol)


def load_method_golden(name: str) -> dict[str, Tensor]:
    """Return the tensors of shared/methods/golden/NAME.npz by name; skip where it is absent."""
    path = METHODS_GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"reference values are not here: {path.name} is absent from shared/methods/golden")
    with np.load(path) as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays}
