"""Every method gives what its authors' released code gives, values and gradients (shared/golden/rivals)."""

import pytest
import torch

from tests.support.beside import Pair
from tests.support.golden import load_rival
from tests.support.released import COMPARISONS, cases

FILES = [(name, case) for name in COMPARISONS for case in cases(name) or [f"{name}_case0"]]


def tolerance(pair: Pair, dtype: torch.dtype) -> float:
    """Where the released code itself computes in float32, no more digits can agree."""
    if dtype == torch.float32:
        return 1e-5
    return 1e-6 if pair.through_single or pair.theirs.dtype == torch.float32 else 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "case"), FILES)
def test_every_quantity_agrees_with_the_released_code(name: str, case: str, dtype: torch.dtype) -> None:
    pairs = COMPARISONS[name](load_rival(case), dtype)
    differing = {
        what: pair.difference for what, pair in pairs.items() if not pair.difference <= tolerance(pair, dtype)
    }
    assert not differing
