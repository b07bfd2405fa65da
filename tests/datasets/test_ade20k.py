"""datasets/ade20k.py: its splits, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import ade20k
from tests.support.data import stripes, write_ade


def test_ade20k_lists_both_splits_and_says_that_its_background_is_void(tmp_path: Path) -> None:
    write_ade(
        tmp_path, {"ADE_train_2": stripes(0, 150), "ADE_train_1": stripes(7)}, {"ADE_val_1": stripes(1)}
    )
    train = ade20k.open_split(tmp_path, "train")
    assert train.ids == ("ADE_train_1", "ADE_train_2")
    assert ade20k.open_split(tmp_path, "val").ids == ("ADE_val_1",)
    assert (train.name, len(train.classes), train.background_is_void) == ("ade20k", 151, True)
    np.testing.assert_array_equal(train.read_label("ADE_train_2"), stripes(0, 150))


def test_what_ade20k_lacks_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"images/training: no such folder.*python download_ade20k\.py"
    ):
        ade20k.open_split(tmp_path, "train")
    root = write_ade(tmp_path, {"a": stripes(1), "b": stripes(1)}, {})
    (root / "annotations" / "training" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"training/b\.png: this mask is missing \(1 of 2 samples"):
        ade20k.open_split(tmp_path, "train")
