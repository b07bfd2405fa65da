"""models/saved.py: a checkpoint is all that a model and what is known of it are built from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.shapes import PALETTE
from models import Segmenter, load_model
from tests.support.cli import write_tiny_config
from trainer.checkpoint import load_checkpoint, new_model, restore_model, save_checkpoint
from trainer.config import load_config
from utils.config.read import read_yaml


def test_a_checkpoint_gives_its_model_and_what_is_known_of_it(finished_run: Path) -> None:
    path = finished_run / "checkpoints" / "step_1.pth"
    model, info = load_model(str(path))
    assert info.class_names == ("background", "ring", "disc", "star", "cross")
    assert info.palette == tuple(PALETTE[i] for i in (0, 5, 1, 6, 4))
    assert (info.num_classes, info.step) == ((3, 2), 1)
    assert info.config == read_yaml(finished_run / "config.yaml")
    assert not model.training
    config = load_config(finished_run / "config.yaml")
    same = restore_model(config, load_checkpoint(path)).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 24), dtype=np.uint8))
    with torch.inference_mode():
        assert torch.equal(model(images).logits, same(images).logits)
        assert model(images).logits.shape == (2, 5, 40, 24)


def test_a_segmenter_comes_back_with_all_its_options(tmp_path: Path) -> None:
    fields = ["model.name=segmenter", "model.backbone=test_vit", "model.num_heads=2", "model.num_blocks=1"]
    fields.append("model.channels=8")
    config = load_config(write_tiny_config(tmp_path), fields)
    model = new_model(config, [3])
    described: dict[str, Any] = {
        "step": 0,
        "num_classes": [3],
        "class_names": list("abc"),
        "palette": [[0, 0, 0]] * 3,
    }
    save_checkpoint(tmp_path / "v.pth", model, **described, config=config.model_dump(mode="json"))
    loaded, _ = load_model(tmp_path / "v.pth")
    assert isinstance(loaded, Segmenter)
    assert len(loaded.decoder.blocks) == 1
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_a_missing_file_and_one_that_describes_no_model_are_named(tmp_path: Path, finished_run: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.pth: no such checkpoint"):
        load_model(tmp_path / "x.pth")
    whole = load_checkpoint(finished_run / "checkpoints" / "step_0.pth")
    model, _ = load_model(finished_run / "checkpoints" / "step_0.pth")
    del whole["model"], whole["palette"]
    save_checkpoint(tmp_path / "a.pth", model, **whole)
    with pytest.raises(ValueError, match=r"a\.pth: .*'palette' is missing"):
        load_model(tmp_path / "a.pth")
    whole["config"]["model"]["channels"] = -1
    save_checkpoint(tmp_path / "b.pth", model, **whole)
    with pytest.raises(ValueError, match=r"b\.pth: no model .*channels"):
        load_model(tmp_path / "b.pth")
