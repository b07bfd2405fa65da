"""methods/ridge.py as its users meet it: new classes from folders, predictions, exports, kills, several ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from methods.ridge import Ridge
from models import load_model
from tests.support.cli import call_main, call_tool, set_fields, write_tiny_config
from tests.support.data import stripes, write_folder
from tests.support.solved import ridge_fields, stored, train_ridge
from tests.support.struck import run_ranks
from tests.support.training import assert_equal_states, tiny, train
from tests.tools.test_export import draw, run_onnx
from tests.trainer.test_resume import Killed
from trainer.checkpoint import checkpoint_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of the method lies, in runs/ridge."""
    return train_ridge(tmp_path_factory.mktemp("ridge_in_use"))


def test_an_engineer_adds_a_class_from_a_folder_of_its_images_alone(tmp_path: Path) -> None:
    """Old classes stay, though they are background in the new images or absent from them."""
    old = {f"o{i}": stripes(0, 1, 2, height=64, width=96 + 8 * i) for i in range(6)}
    new = {f"n{i}": stripes(0, 3, height=64, width=96 + 8 * i) for i in range(6)}
    write_folder(tmp_path / "old", ["pear", "kiwi"], old, {f"v{i}": x for i, x in enumerate(old.values())})
    both = {f"w{i}": x for i, x in enumerate([*old.values(), *new.values()])}
    write_folder(tmp_path / "new", ["pear", "kiwi", "fig"], new, both)
    config = write_tiny_config(tmp_path, report=True)

    def run(log: str, *fields: str) -> None:
        solving = [field for field in ridge_fields(tmp_path) if not field.startswith("data.")]
        options = [*solving, "data.name=folder", *fields]
        result = call_main("--config", config, "--log", log, *set_fields(*options))
        assert result.returncode == 0, result.stderr

    run("base", f"data.root={tmp_path / 'old'}", "task=[[pear, kiwi]]")
    base = checkpoint_path(tmp_path / "runs/base", 0)
    run("grown", f"data.root={tmp_path / 'new'}", "task=[[pear, kiwi], [fig]]", f"init_from={base}")
    assert torch.equal(
        stored(tmp_path, 0, "grown")["method_state"]["gram"],
        stored(tmp_path, 0, "base")["method_state"]["gram"],
    )

    grown, output = checkpoint_path(tmp_path / "runs/grown", 1), tmp_path / "predictions"
    predicted = call_tool("predict", grown, tmp_path / "new/images/val", "--output", output)
    assert predicted.returncode == 0, predicted.stderr
    for name, mask in both.items():
        found = np.array(Image.open(output / f"masks/{name}.png"))
        assert np.mean(found == mask) > 0.9, name
    report = call_tool("report", tmp_path / "runs/grown")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "runs/grown/report.html").read_text()
    assert "fig" in page
    assert "ridge" in page


@pytest.mark.parametrize(("image", "step"), [(5, 0), (17, 1)])
def test_a_run_killed_within_a_pass_ends_bit_for_bit_as_if_it_had_not_been(
    folder: Path, monkeypatch: pytest.MonkeyPatch, image: int, step: int
) -> None:
    label_cells, images = Ridge.label_cells, iter(range(10**6))

    def killed(*arguments: Any) -> torch.Tensor:
        if next(images) == image:
            raise Killed
        return label_cells(*arguments)

    config = tiny(folder, f"killed_{image}", *ridge_fields(folder))
    with monkeypatch.context() as patch:
        patch.setattr(Ridge, "label_cells", killed)
        with pytest.raises(Killed):
            train(config)
    done = [path.name for path in sorted((config.run_dir / "checkpoints").glob("*.pth"))]
    assert done == [f"step_{i}.pth" for i in range(step)]
    train(config)
    ours, theirs = stored(folder, 1, config.log), stored(folder, 1)
    assert_equal_states(ours["model"], theirs["model"])
    assert_equal_states(ours["method_state"], theirs["method_state"])


def test_a_checkpoint_predicts_as_it_was_evaluated(folder: Path, tmp_path: Path) -> None:
    path = checkpoint_path(folder / "runs/ridge", 1)
    model, info = load_model(path)
    assert model.closed_form is not None
    assert info.class_names == ("background", "ring", "disc", "star", "cross")
    evaluated = call_tool("evaluate", path, "--json", tmp_path / "figures.json", "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    results = json.loads((folder / "runs/ridge/results.json").read_text())
    assert figures["per_class_iou"] == results["steps"][1]["per_class_iou"]
    assert min(figures["per_class_iou"].values()) > 0


def test_two_ranks_add_up_to_the_solution_of_one_and_give_background_the_same_labels(folder: Path) -> None:
    config = write_tiny_config(folder)
    process = run_ranks("--config", config, "--log", "ranks", *set_fields(*ridge_fields(folder)))
    assert process.returncode == 0, process.stderr
    ours, theirs = stored(folder, 1, "ranks")["method_state"], stored(folder, 1)["method_state"]
    for name, rtol in (("gram", 1e-9), ("targets", 1e-9), ("sharpness", 1e-6)):
        torch.testing.assert_close(ours[name], theirs[name], rtol=rtol, atol=1e-9)
    # Weights of rings and discs: those of step 1 are background in its masks.
    before, after = (stored(folder, step)["method_state"]["targets"][-1, 1:3] for step in (0, 1))
    assert (after > 1.1 * before).all()


def test_exemplars_in_memory_are_summed_too(folder: Path) -> None:
    config = tiny(folder, "memory", *ridge_fields(folder, "memory.size=6"))
    train(config)
    counts = [stored(folder, 1, log)["method_state"]["gram"][-1, -1] for log in ("memory", "ridge")]
    assert counts[0] > counts[1]


@torch.no_grad()
def test_a_solved_model_gives_the_same_scores_in_onnxruntime(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path, output = checkpoint_path(folder / "runs/ridge", 1), tmp_path / "model.onnx"
    process = call_tool("export", path, "--format", "onnx", "--size", "dynamic", "--output", output)
    assert process.returncode == 0, process.stderr
    model, _ = load_model(path)
    for shape in ((1, 3, 64, 64), (2, 3, 101, 57)):
        images = draw(*shape)
        logits = run_onnx(output, images)[2]
        expected = model(images).logits
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
