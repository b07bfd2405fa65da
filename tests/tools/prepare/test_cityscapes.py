"""Cityscapes becomes a folder that training reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import folder
from tests.support.cli import set_fields, write_tiny_config
from tests.support.data import stripes, write_cityscapes
from tests.support.prepare import read
from tools import check_data
from tools.prepare_folder import main


def test_cityscapes_becomes_a_folder_that_check_data_finds_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {f"ulm_0_{i}": stripes(7, 26, 4, width=18 + i) for i in range(4)}
    val = {f"bonn_0_{i}": stripes(26, 7, 255, width=18 + i) for i in range(4)}
    write_cityscapes(tmp_path / "in", train, val)
    assert main(["cityscapes", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert set(np.unique(read(tmp_path / "out", "ulm_0_1"))) == {1, 14, 255}
    np.testing.assert_array_equal(read(tmp_path / "out", "bonn_0_0"), stripes(14, 1, 255, width=18))
    assert folder.open_split(tmp_path / "out", "val").palette[1] == (128, 64, 128)
    fields = ["data.name=folder", f"data.root={tmp_path / 'out'}", "task=[[road], [car]]"]
    assert check_data.main(["--config", str(write_tiny_config(tmp_path)), *set_fields(*fields)]) == 0
    assert "4 train, 4 val images, no problems" in capsys.readouterr().out
