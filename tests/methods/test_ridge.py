"""methods/ridge.py: no gradient after the base step, one solution however it is come by, and a model like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from methods.ridge import Ridge
from models import load_model
from tests.support.cli import run_main, run_tool, set_fields, write_tiny_config
from tests.support.training import SEGMENTER, WORKER, tiny, train, weights
from trainer.checkpoint import checkpoint_path, load_checkpoint
from trainer.config import load_config
from trainer.plan import prepare

FIELDS = ("method=ridge", "train.num_epochs=3", "train.optimizer=adamw", "train.lr_base=3e-3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of the method lies, in runs/ridge."""
    folder = tmp_path_factory.mktemp("ridge")
    train(tiny(folder, "ridge", *FIELDS))
    return folder


def checkpoint(folder: Path, step: int, log: str = "ridge") -> dict[str, Any]:
    return load_checkpoint(checkpoint_path(folder / "runs" / log, step))


def test_only_the_solution_changes_after_the_base_step(folder: Path) -> None:
    before, after = checkpoint(folder, 0)["model"], checkpoint(folder, 1)["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"closed_form.weight", "closed_form.bias"}
    assert [len(c["model"]["closed_form.bias"]) for c in (checkpoint(folder, 0), checkpoint(folder, 1))] == [
        3,
        5,
    ]
    lines = (folder / "runs/ridge/metrics.jsonl").read_text().splitlines()
    assert not any(line["step"] == 1 and "lr" in line for line in map(json.loads, lines))


def test_the_sums_are_carried_on_in_the_checkpoint(folder: Path) -> None:
    base, last = (checkpoint(folder, step)["method_state"] for step in (0, 1))
    size = len(base["gram"])
    assert base["targets"].shape == (size, 3)
    assert last["targets"].shape == (size, 5)
    assert all(state[name].dtype == torch.float64 for state in (base, last) for name in state)
    added = last["gram"] - base["gram"]
    assert float(torch.linalg.eigvalsh(added).min()) > -1e-6 * float(added.diagonal().max())
    assert torch.equal(last["mean"], base["mean"])


def test_a_base_step_of_another_method_gives_the_same_solution(folder: Path) -> None:
    train(tiny(folder, "finetune", *FIELDS, "method=finetune"))
    base = checkpoint_path(folder / "runs/finetune", 0)
    config = tiny(folder, "from_other", *FIELDS, f"init_from={base}")
    train(config)
    ours, theirs = weights(config, 1), checkpoint(folder, 1)["model"]
    for name in ("closed_form.weight", "closed_form.bias"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_another_method_takes_the_base_step_without_its_solution(folder: Path) -> None:
    base = f"init_from={checkpoint_path(folder / 'runs/ridge', 0)}"
    config = tiny(folder, "mbs", *FIELDS, "method=mbs", base)
    train(config)
    for step in (0, 1):
        taken = checkpoint(folder, step, "mbs")
        assert taken["method_state"] == {}
        assert not any(name.startswith("closed_form") for name in taken["model"])
    own = checkpoint(folder, 0)["model"]
    assert all(torch.equal(own[name], x) for name, x in checkpoint(folder, 0, "mbs")["model"].items())


def test_a_checkpoint_predicts_as_it_was_evaluated(folder: Path, tmp_path: Path) -> None:
    path = checkpoint_path(folder / "runs/ridge", 1)
    model, info = load_model(path)
    assert model.closed_form is not None
    assert info.class_names == ("background", "ring", "disc", "star", "cross")
    evaluated = run_tool("evaluate", path, "--json", tmp_path / "figures.json", "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    results = json.loads((folder / "runs/ridge/results.json").read_text())
    assert figures["per_class_iou"] == results["steps"][1]["per_class_iou"]


def test_two_ranks_add_up_to_the_solution_of_one(folder: Path) -> None:
    base = f"init_from={checkpoint_path(folder / 'runs/ridge', 0)}"
    config = write_tiny_config(folder)
    process = run_main("--config", config, "--log", "ranks", *set_fields(*FIELDS, base), ranks=2)
    assert process.returncode == 0, process.stderr
    ours, theirs = checkpoint(folder, 1, "ranks"), checkpoint(folder, 1)
    for name in ("gram", "targets"):
        torch.testing.assert_close(
            ours["method_state"][name], theirs["method_state"][name], rtol=1e-9, atol=1e-9
        )


def test_a_segmenter_is_solved_too(tmp_path: Path) -> None:
    config = tiny(tmp_path, "segmenter", *FIELDS, *SEGMENTER, "method.described_by=[head, image]")
    results = train(config)
    assert checkpoint(tmp_path, 1, "segmenter")["model"]["closed_form.weight"].shape == (5, 2 * 8)
    assert len(results["steps"]) == 2


@pytest.mark.parametrize("names", ["[heads]", "[image]"])
def test_what_is_no_map_of_the_model_is_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(ValueError, match=r"method\.described_by: found .* maps head, aspp, backbone, stages"):
        tiny(tmp_path, "wrong", "method=ridge", f"method.described_by={names}")


def test_a_base_step_without_sums_and_without_images_is_refused_before_training(tmp_path: Path) -> None:
    train(tiny(tmp_path, "base", "method=finetune", "task=[[ring, disc]]"))
    for split in ("train", "val"):
        for kind, shape in (("images", (32, 32, 3)), ("masks", (32, 32))):
            path = tmp_path / "new" / kind / split / "a.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full(shape, 3, np.uint8)).save(path)
    (tmp_path / "new/classes.txt").write_text("ring\ndisc\ncomet\n")
    base = f"init_from={checkpoint_path(tmp_path / 'runs/base', 0)}"
    new = ["data.name=folder", f"data.root={tmp_path / 'new'}", "task=[[ring, disc], [comet]]"]
    config = load_config(write_tiny_config(tmp_path), ["method=ridge", base, *new], log="add")
    with pytest.raises(
        ValueError, match=r"init_from: .* method finetune and holds nothing .* no image of step 0"
    ):
        prepare(config, WORKER)


def test_background_takes_the_label_of_a_clear_winner_only() -> None:
    method = Ridge(Ridge.Options(margin=0.2), 3, 1)
    cells = torch.tensor([[[0, 0, 0, 3, 255]]])
    scores = torch.tensor(
        [[0.1, 0.9, 0.0], [0.5, 0.4, 0.1], [0.9, 0.1, 0.3], [0.9, 0.0, 0.1], [0.0, 0.9, 0.1]]
    )
    found = method.fill_background(cells, scores.T[None, :, None])
    assert found.tolist() == [[[1, 255, 0, 3, 255]]]


def test_only_cells_of_one_label_count() -> None:
    method = Ridge(Ridge.Options(purity=0.8), 2, 1)
    labels = torch.zeros(1, 4, 8, dtype=torch.int64)
    labels[0, :, :4] = 2
    labels[0, 0, 4:] = 1  # a quarter of the second cell
    assert method.label_cells(labels, torch.Size((1, 2)), 3).tolist() == [[[2, 255]]]
    labels[0, 0, 5:] = 0
    assert method.label_cells(labels, torch.Size((1, 2)), 3).tolist() == [[[2, 0]]]
    labels[0, :, :4] = 255
    assert method.label_cells(labels, torch.Size((1, 2)), 3).tolist() == [[[255, 0]]]
