"""A class is added to a trained model from images of the new class alone, as docs/own_images.md says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from models import load_model
from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.data import stripes, write_folder

FIELDS = ["data.name=folder"]


def test_one_command_adds_a_class_from_new_images_only(tmp_path: Path) -> None:
    old = {f"o{i}": stripes(0, 1, 2, height=32, width=30 + i) for i in range(6)}
    write_folder(
        tmp_path / "old", ["pear", "kiwi"], old, {f"v{i}": mask for i, mask in enumerate(old.values())}
    )
    # Only the new class is labelled: pears and kiwis are background here.
    new = {f"n{i}": stripes(0, 3, height=32, width=30 + i) for i in range(6)}
    fresh = {f"w{i}": mask for i, mask in enumerate(new.values())}
    write_folder(tmp_path / "new", ["pear", "kiwi", "fig"], new, fresh)
    config = write_tiny_config(tmp_path)

    base = [*FIELDS, f"data.root={tmp_path / 'old'}", "task=[[pear, kiwi]]"]
    result = call_main("--config", config, "--log", "base", *set_fields(*base))
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "runs" / "base" / "checkpoints" / "step_0.pth"
    grown = [
        *FIELDS,
        f"data.root={tmp_path / 'new'}",
        "task=[[pear, kiwi], [fig]]",
        f"init_from={checkpoint}",
    ]
    result = call_main("--config", config, "--log", "grown", *set_fields(*grown))
    assert result.returncode == 0, result.stderr

    run = tmp_path / "runs" / "grown"
    assert sorted((run / "train_images" / "step_1.txt").read_text().split()) == sorted(new)
    first, second = json.loads((run / "results.json").read_text())["steps"]
    assert second["new_classes"] == ["fig"]
    assert list(second["per_class_iou"]) == ["background", "pear", "kiwi", "fig"]
    before, _ = load_model(checkpoint)
    taken, _ = load_model(run / "checkpoints" / "step_0.pth")
    after, info = load_model(run / "checkpoints" / "step_1.pth")
    weights = before.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in taken.state_dict().items())
    assert info.class_names == ("background", "pear", "kiwi", "fig")
    assert info.num_classes == (3, 1)
    assert not all(torch.equal(after.state_dict()[name], value) for name, value in weights.items())
    assert first["num_val_images"] == second["num_val_images"] == len(fresh)
    assert np.isfinite(second["per_class_iou"]["fig"])
