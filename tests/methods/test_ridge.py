"""methods/ridge.py: no gradient at all, one solution however it is come by, and a model like any other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from methods.base import Looks
from methods.closed_form import Sums
from methods.ridge import Ridge
from models import SegmentationModel, load_model
from tests.support.cli import write_tiny_config
from tests.support.solved import ridge_fields, stored, train_ridge
from tests.support.training import SEGMENTER, WORKER, tiny, train, weights
from trainer.checkpoint import checkpoint_path, load_checkpoint
from trainer.config import load_config
from trainer.learn import whole_datasets
from trainer.plan import prepare
from trainer.session import Session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of the method lies, in runs/ridge."""
    return train_ridge(tmp_path_factory.mktemp("ridge"))


def test_nothing_but_the_solution_ever_changes(folder: Path) -> None:
    before, after = stored(folder, 0)["model"], stored(folder, 1)["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"closed_form.weight", "closed_form.bias"}
    pretrained = torch.load(folder / "test_resnet.pth", weights_only=True)
    kept = [name for name in before if name.startswith("backbone.")]
    assert all(torch.equal(before[name], pretrained[name.removeprefix("backbone.")]) for name in kept)
    assert [len(c["model"]["closed_form.bias"]) for c in (stored(folder, 0), stored(folder, 1))] == [
        3,
        5,
    ]
    lines = (folder / "runs/ridge/metrics.jsonl").read_text().splitlines()
    assert not any("lr" in line for line in map(json.loads, lines))


def test_the_sums_are_carried_on_in_the_checkpoint(folder: Path) -> None:
    base, last = (stored(folder, step)["method_state"] for step in (0, 1))
    size = len(base["gram"])
    assert base["targets"].shape == (size, 3)
    assert last["targets"].shape == (size, 5)
    assert all(state[name].dtype == torch.float64 for state in (base, last) for name in state)
    added = last["gram"] - base["gram"]
    assert float(torch.linalg.eigvalsh(added).min()) > -1e-6 * float(added.diagonal().max())
    assert torch.equal(last["mean"], base["mean"])


def test_the_network_may_be_that_of_a_base_step_of_another_method(folder: Path) -> None:
    train(tiny(folder, "finetune", "method=finetune"))
    base = checkpoint_path(folder / "runs/finetune", 0)
    described_by = "method.described_by=[head, aspp, backbone, stages, neighbours, image]"
    config = tiny(folder, "from_other", "method=ridge", described_by, f"init_from={base}")
    train(config)
    ours, theirs = weights(config, 1), load_checkpoint(base)["model"]
    assert all(torch.equal(ours[name], x) for name, x in theirs.items() if not name.startswith("classifier."))
    model, _ = load_model(checkpoint_path(config.run_dir, 1))
    assert model.closed_form is not None
    assert model.closed_form.weight.shape == (5, 3 * sum(x.shape[1] for x in all_maps(model)))


def all_maps(model: SegmentationModel) -> list[torch.Tensor]:
    named = model.named_maps(torch.zeros(1, 3, 32, 32), model.maps)
    return [x for name in model.maps for x in named[name]]


def test_another_method_takes_the_network_without_its_solution(folder: Path) -> None:
    base = f"init_from={checkpoint_path(folder / 'runs/ridge', 0)}"
    config = tiny(folder, "mbs", "method=mbs", "model.output_stride=8", base)
    train(config)
    for step in (0, 1):
        taken = stored(folder, step, "mbs")
        assert taken["method_state"] == {}
        assert not any(name.startswith("closed_form") for name in taken["model"])
    own = stored(folder, 0)["model"]
    assert all(torch.equal(own[name], x) for name, x in stored(folder, 0, "mbs")["model"].items())


def test_scales_and_flips_add_the_cells_of_every_view_of_an_image(folder: Path) -> None:
    model, _ = load_model(checkpoint_path(folder / "runs/ridge", 0))
    looks = cast(Looks, SimpleNamespace(device=torch.device("cpu"), sum=lambda x: x))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3)) * 255
    labels = torch.zeros(1, 64, 96, dtype=torch.int64)
    labels[:, :, 40:] = 1

    @torch.no_grad()
    def gram(x: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
        method = Ridge(Ridge.Options(name="ridge", balance=0, **options), 3, 0)
        channels = model.describe(x, method.described_by(model)).shape[1]
        return method.add_up(looks, method.cells(model, [(x, y)], 3), channels, 3).gram

    smaller = torch.nn.functional.interpolate(images, (32, 48), mode="bilinear", antialias=True)
    views = [(x, labels) for x in (images, smaller)]
    views += [(x.flip(3), labels.flip(2)) for x in (images, smaller)]
    expected = torch.stack([gram(x, y) for x, y in views]).sum(dim=0)
    found = gram(images, labels, scales=(1.0, 0.5), flips=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert found[-1, -1] > 2 * gram(images, labels)[-1, -1], "the last entry counts cells"


def test_steps_add_up_to_what_one_pass_over_all_their_cells_gives(folder: Path) -> None:
    """The recursion over two steps against weighted least squares over every cell at once, features and all."""
    config = tiny(folder, "ridge", *ridge_fields(folder))
    plan = prepare(config, WORKER)
    model, _ = load_model(checkpoint_path(folder / "runs/ridge", 0))
    assert model.closed_form is not None
    state = stored(folder, 0)["method_state"]
    method = Ridge(config.method, 3, 2)
    rows, targets = [], []
    for step in plan.task.steps:
        xs, ys = [], []
        session = cast(Session, SimpleNamespace(config=config, plan=plan, worker=WORKER))
        for dataset in whole_datasets(session, step, of_base_step=False):
            for image, label, _ in (dataset[i] for i in range(len(dataset))):
                with torch.no_grad():
                    x = model.describe(image[None], model.closed_form.described_by)
                    cells = method.pure_cells(label[None].long(), x.shape[2:], 5)
                    if step.index == 1:
                        cells = method.fill_background(cells, model.closed_form(x) / state["sharpness"])
                xs.append(x.permute(0, 2, 3, 1).flatten(0, 2).double())
                ys.append(cells.flatten())
        x, y = torch.cat(xs), torch.cat(ys)
        x, y = x[y != 255], y[y != 255]
        counts = y.bincount(minlength=5).double()
        w = (counts[counts > 0].mean() / counts)[y] ** config.method.balance  # type: ignore[attr-defined]
        standard = torch.cat(
            [(x - state["mean"]) / state["deviation"], torch.ones(len(x), 1).double()], dim=1
        )
        rows.append(w.sqrt()[:, None] * standard)
        targets.append(w.sqrt()[:, None] * torch.nn.functional.one_hot(y, 5))
    size = rows[0].shape[1]
    penalty = (1e-2 * torch.cat(rows).square().sum() / size).sqrt() * torch.eye(size).double()
    expected = torch.linalg.lstsq(
        torch.cat([*rows, penalty]), torch.cat([*targets, torch.zeros(size, 5).double()])
    ).solution
    last = stored(folder, 1)
    method.state = last["method_state"]
    weight, _ = method.solve()
    exact = (expected[:-1] / state["deviation"][:, None]).T
    torch.testing.assert_close(weight, exact, rtol=1e-10, atol=1e-10 * float(exact.abs().max()))
    raw = exact * state["sharpness"]
    solved = last["model"]["closed_form.weight"]
    assert float(raw.abs().max()) > 1e-3
    torch.testing.assert_close(solved.double(), raw, rtol=1e-5, atol=1e-6 * float(raw.abs().max()))


def test_a_segmenter_is_solved_too(tmp_path: Path) -> None:
    config = tiny(tmp_path, "segmenter", *ridge_fields(tmp_path, *SEGMENTER, backbone="test_vit"))
    results = train(config)
    width = cast(int, timm.create_model("test_vit").embed_dim)
    assert stored(tmp_path, 1, "segmenter")["model"]["closed_form.weight"].shape == (5, 2 * width)
    assert len(results["steps"]) == 2


@pytest.mark.parametrize("names", ["[heads]", "[image]"])
def test_what_is_no_map_of_the_model_is_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(ValueError, match=r"method\.described_by: found .* maps backbone, stages, aspp, head"):
        tiny(tmp_path, "wrong", *ridge_fields(tmp_path, f"method.described_by={names}"))


def test_a_network_without_weights_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.pretrained: method ridge trains no network"):
        tiny(tmp_path, "random", "method=ridge")


def test_other_maps_than_those_of_the_sums_so_far_are_refused(folder: Path) -> None:
    base = f"init_from={checkpoint_path(folder / 'runs/ridge', 0)}"
    config = tiny(folder, "others", *ridge_fields(folder, "method.described_by=[stages]", base))
    with pytest.raises(ValueError, match=r"found stages, but the sums .* are of backbone, stages, image"):
        train(config)


def test_a_class_without_cells_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a grid of 2x2 cells none is all star."""
    few_cells = ("data.image_size=32", "model.output_stride=16", "method.purity=1.0")
    train(tiny(folder, "coarse", *ridge_fields(folder, *few_cells)))
    told = capsys.readouterr().out
    assert "step 1: no cell shows star by 100%: it will never be predicted; lower method.purity" in told


def test_a_class_whose_cells_score_higher_as_another_on_average_is_told() -> None:
    told: list[str] = []
    looks = SimpleNamespace(class_names=("background", "dog", "cow", "cat"), say=told.append)
    solved = SimpleNamespace(
        weight=torch.tensor([[0.0], [1.0], [0.5], [0.0]]), bias=torch.tensor([0.0, 0, 0, 0.9])
    )
    of_class = torch.tensor([[0.0], [0.0], [4.0], [0.1]], dtype=torch.float64)
    counts = torch.tensor([0.0, 0, 2, 1], dtype=torch.float64)
    # Two cows, x = 2: dog 2, cow 1, cat 0.9; a cat, x = 0.1: dog 0.1, cow 0.05, cat 0.9.
    sums = Sums(of_class, of_class, of_class, counts)
    method = Ridge(Ridge.Options(), 2, 2)
    method.tell(
        cast(SegmentationModel, SimpleNamespace(closed_form=solved)), cast(Looks, looks), sums, first=2
    )
    assert len(told) == 1
    assert told[0].startswith("cells of cow score higher as dog on average")


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
    assert method.pure_cells(labels, torch.Size((1, 2)), 3).tolist() == [[[2, 255]]]
    labels[0, 0, 5:] = 0
    assert method.pure_cells(labels, torch.Size((1, 2)), 3).tolist() == [[[2, 0]]]
    labels[0, :, :4] = 255
    assert method.pure_cells(labels, torch.Size((1, 2)), 3).tolist() == [[[255, 0]]]
