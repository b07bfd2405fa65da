"""methods/ssul.py: heads, what is unknown, and what of the model and the data goes with it."""

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import voc
from datasets.incremental import StepDataset
from datasets.source import with_saliency
from datasets.transforms import TrainTransform
from methods import METHODS, Output
from methods.ssul import SSUL, all_logits
from tests.methods.test_runs import make_config
from tests.support.data import stripes, write_folder, write_mask, write_voc
from tests.support.outputs import LABELS, NUM_NEW, NUM_OLD, make_method, random_output
from tests.support.training import SEGMENTER, outcome, tiny, train, weights
from tests.trainer.test_gradients import STEP, make_models
from tests.trainer.test_resume import killed_before
from trainer.network import Network
from trainer.optim import build_optimizer
from trainer.step import prepare_for_training
from utils.labels import SALIENT

UNKNOWN = ("method=ssul", "method.unknown=background")


@pytest.mark.parametrize(
    ("more", "classifier"),
    [
        (("method=ssul",), "heads"),
        (UNKNOWN, "heads+unknown"),
        (("method=ssul", "model.classifier=rows"), "rows"),
        (("method=ssul_ucb",), "heads"),
        (("method=finetune",), "rows"),
    ],
)
def test_ssul_takes_heads_and_one_of_an_unknown_class_where_something_shows_it(
    tmp_path: Path, more: tuple[str, ...], classifier: str
) -> None:
    assert make_config(tmp_path, *more).model.model_dump()["classifier"] == classifier


def test_a_segmenter_has_no_heads_and_says_so_where_they_are_asked_for(tmp_path: Path) -> None:
    assert make_config(tmp_path, "method=ssul", *SEGMENTER).model.name == "segmenter"
    with pytest.raises(
        ValueError, match=r"model\.classifier: method\.unknown background needs heads\+unknown"
    ):
        make_config(tmp_path, *UNKNOWN, *SEGMENTER)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("method=mbs", "model.classifier=heads"), r"model\.classifier: heads is for method ssul"),
        (("method=ssul", "model.classifier=heads+unknown"), "has nothing to learn from"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path: Path, more: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_config(tmp_path, *more)


def test_the_unknown_class_follows_all_others_and_old_classes_that_are_sure_take_its_pixels() -> None:
    labels = LABELS.clone()
    labels[:, ::2] = torch.where(labels[:, ::2] == 0, SALIENT, labels[:, ::2])
    raw = random_output(NUM_OLD + 1, 5).logits.detach()
    old = random_output(NUM_OLD, 6)._replace(grid_logits=raw)
    method = make_method(SSUL, threshold=0.9)
    targets = method.targets(labels, cast(Output, old))
    expected = labels.clone()
    for b, y, x in ((labels == 0) | (labels == SALIENT)).nonzero().tolist():
        scores = raw[b, :, y, x].sigmoid()
        best = int(scores.argmax())
        if 0 < best < NUM_OLD and scores[best] >= 0.9:
            expected[b, y, x] = best
        elif labels[b, y, x] == SALIENT:
            expected[b, y, x] = NUM_OLD + NUM_NEW
    assert torch.equal(targets.pseudo_labels, expected)
    assert (expected == NUM_OLD + NUM_NEW).any()
    assert torch.equal(targets.labels, LABELS), "other terms know nothing of it"


def test_all_logits_are_those_of_the_grid_at_image_size() -> None:
    output = random_output(4, 1)
    assert all_logits(cast(Output, output)) is output.logits
    with_unknown = output._replace(grid_logits=torch.randn(2, 5, 4, 4))
    assert all_logits(cast(Output, with_unknown)).shape == (2, 5, 8, 8)


def test_the_new_and_the_unknown_head_train_and_the_backgrounds_at_a_small_rate(tmp_path: Path) -> None:
    config = make_config(tmp_path, *UNKNOWN, "train.lr_classifier_incremental=0.5", "train.momentum=0")
    model, _ = make_models(config)
    prepare_for_training(model, STEP, config.train)
    trained = {id(p) for p in (*model.newest_parameters(), *model.background_parameters())}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    network = Network(model, torch.nn.ModuleDict())
    groups = build_optimizer(network, config.train, is_base_step=False).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in model.newest_parameters()} == {0.5}
    assert {rates[id(p)] for p in model.background_parameters()} == {0.5 * 1e-4}
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_a_run_with_an_unknown_class_starts_new_heads_as_it_and_ends_bit_for_bit_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, killed = (tiny(tmp_path, name, *UNKNOWN, "save_every=1") for name in ("plain", "killed"))
    started = []
    add_classes = SSUL.add_classes

    def seen(method: SSUL, model: torch.nn.Module, num_new: int) -> None:
        add_classes(method, model, num_new)  # type: ignore[arg-type]
        unknown, newest = (
            model.get_parameter(f"classifier.{name}.3.weight") for name in ("unknown", "heads.1")
        )
        started.append(torch.equal(newest, unknown.expand_as(newest)))

    monkeypatch.setattr(SSUL, "add_classes", seen)
    train(plain)
    assert started == [True]
    before, after = (weights(plain, step) for step in (0, 1))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"background", "unknown"}
    assert METHODS["ssul"] is SSUL
    with killed_before(4, monkeypatch):
        train(killed)
    train(killed)
    assert outcome(killed.run_dir) == outcome(plain.run_dir)


def test_saliency_marks_the_background_of_a_steps_images_and_goes_with_their_crops(tmp_path: Path) -> None:
    mask = stripes(0, 1, 2, 0)
    write_voc(tmp_path, {"a": mask}, {"b": mask})
    salient = np.zeros_like(mask)
    salient[:8] = 255
    write_mask(tmp_path / "saliency" / "a.png", salient, mode="L")
    dataset = with_saliency(voc.open_split(tmp_path, "train"), tmp_path / "saliency")
    table = np.zeros(256, np.uint8)
    table[[2, 255]] = 1, 255
    transform = TrainTransform(16, 1.0, 1.0, (0.0, 0.0, 0.0))
    step = StepDataset(dataset, ["a"], table, transform, 0, 1, read_salient=dataset.read_salient)
    _, label, problem = step[0, 0]
    assert not problem
    upper, lower = label[:8], label[8:]
    assert set(upper.unique().tolist()) == {1, SALIENT}
    assert set(lower.unique().tolist()) == {0, 1}
    Image.fromarray(salient[:4]).save(tmp_path / "saliency" / "a.png")
    assert "its mask of data.saliency is 16x4 (width x height), its label 16x16" in step[0, 0][2]


def test_an_image_without_a_saliency_mask_is_named_before_anything_starts(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": stripes(0, 1)}, {"b": stripes(0, 1)})
    (tmp_path / "saliency").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a\.png: this mask is missing \(1 of 1 images have none\)"):
        with_saliency(voc.open_split(tmp_path, "train"), tmp_path / "saliency")


def test_a_run_with_saliency_and_memory_learns_what_is_salient_as_unknown(tmp_path: Path) -> None:
    big = partial(stripes, height=32, width=32)
    masks = {"a": big(0, 1, 0), "b": big(0, 2, 0), "c": big(0, 1, 2, 0)}
    classes = ["background", "cat", "dog"]
    root = write_folder(tmp_path / "data", classes, masks, {"v": big(0, 1, 2, 0)})
    salient = np.zeros_like(masks["a"])
    salient[:16] = 255
    for name in masks:
        write_mask(tmp_path / "saliency" / f"{name}.png", salient, mode="L")
    fields = (
        *("method=ssul", "data.name=folder", f"data.root={root}", "task=[[cat],[dog]]", "memory.size=2"),
        *("setting=overlap", "train.batch_size=2", "train.num_epochs=2"),
    )
    with_masks = tiny(tmp_path, "salient", *fields, f"data.saliency={tmp_path / 'saliency'}")
    train(with_masks)
    steps = [weights(with_masks, step) for step in (0, 1)]
    unknown = [{name: x for name, x in step.items() if ".unknown." in name} for step in steps]
    assert unknown[0]
    assert unknown[0].keys() == unknown[1].keys()
    assert any(not torch.equal(unknown[0][name], unknown[1][name]) for name in unknown[0]), (
        "it goes on learning"
    )
    assert (with_masks.run_dir / "memory").exists()
    without = tiny(tmp_path, "plain", *fields)
    train(without)
    assert not any(".unknown." in name for name in weights(without, 1))
