"""More data of the same classes: training goes on from a checkpoint, and a finished run says that its data changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.data import Mask, stripes, write_folder
from tests.support.training import WORKER, assert_equal_states, tiny, train, weights
from trainer.checkpoint import checkpoint_path, new_model
from trainer.config import Config
from trainer.plan import prepare


def masks(first: int, last: int) -> dict[str, Mask]:
    return {f"i{i}": stripes(0, 1, 2, height=32, width=30 + i) for i in range(first, last)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("more")
    write_folder(folder / "data", ["pear", "kiwi"], masks(0, 6), masks(0, 2))
    config = make(folder, "base", "task=[[pear], [kiwi]]")
    train(config)
    return config


def make(folder: Path, log: str, *overrides: str) -> Config:
    return tiny(folder, log, "data.name=folder", f"data.root={folder / 'data'}", *overrides)


def test_training_goes_on_from_a_checkpoint_of_several_steps_on_the_images_of_now(base: Config) -> None:
    last = checkpoint_path(base.run_dir, 1)
    fields = ("task=[[pear, kiwi]]", f"init_from={last}", "continue_training=true")
    config = make(base.output_dir.parent, "more", *fields)
    plan = prepare(config, WORKER)
    assert plan.num_iterations(plan.task.steps[0], WORKER) == 1
    assert_equal_states(plan.base_network[0].model.state_dict(), weights(base, 1))
    (step,) = train(config)["steps"]
    assert "taken_from" not in step
    assert (config.run_dir / "train_images" / "step_0.txt").read_text().split() == [*masks(0, 6)]
    after = weights(config, 0)
    assert any(not torch.equal(value, after[name]) for name, value in weights(base, 1).items())
    assert train(config)["steps"] == [step]  # a rerun does not train again


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([], r"init_from: task 2 has one step, which is taken over .* set continue_training=true"),
        (
            ["init_from=null", "continue_training=true"],
            r"continue_training: needs the checkpoint to go on from",
        ),
        (
            ["method=ridge", "continue_training=true"],
            r"continue_training: method ridge solves for its classes",
        ),
        (
            ["method=ridge", "checkpoint=best_validation"],
            r"checkpoint: method ridge trains no epochs of which best_validation could choose one",
        ),
    ],
)
def test_a_run_that_would_train_nothing_is_refused_before_training(
    base: Config, fields: list[str], told: str
) -> None:
    start = f"init_from={checkpoint_path(base.run_dir, 1)}"
    start = "seed=0" if "init_from=null" in fields else start
    with pytest.raises(ValueError, match=told):
        prepare(make(base.output_dir.parent, "refused", "task=[[pear, kiwi]]", start, *fields[-2:]), WORKER)


def test_a_finished_run_whose_images_have_changed_says_so_and_how_to_go_on(base: Config) -> None:
    assert not any("finished" in line for line in prepare(base, WORKER).remarks)
    root = base.output_dir.parent / "data"
    write_folder(root, ["pear", "kiwi"], masks(0, 9), masks(0, 2))
    try:
        *_, changed, finished = prepare(base, WORKER).remarks
    finally:
        for i in (6, 7, 8):
            for file in root.glob(f"*/train/i{i}.*"):
                file.unlink()
    assert "the train images are not those that the run in" in changed
    assert "3 are new, such as 'i6'" in changed
    assert finished.startswith("warning: this run was finished on 20")
    path = checkpoint_path(base.run_dir, 1)
    assert (
        f"`--log base_more --set init_from={path} --set continue_training=true "
        '--set \'task=[["pear", "kiwi"]]\'`' in finished
    )


def test_a_changed_mask_is_told_of_a_finished_run_and_of_one_that_goes_on(base: Config) -> None:
    mask = base.output_dir.parent / "data" / "masks" / "train" / "i1.png"
    last, content = checkpoint_path(base.run_dir, 1), mask.read_bytes()
    checkpoint = last.read_bytes()
    told = (
        f"warning: data.root: the files of 1 of 6 train samples have changed since the run in {base.run_dir} began, "
        "such as the mask of 'i1'"
    )
    label = np.array(Image.open(mask))
    label[:2] = 0
    Image.fromarray(label).save(mask)
    try:
        finished = prepare(base, WORKER).remarks
        last.unlink()
        unfinished = prepare(base, WORKER).remarks
    finally:
        mask.write_bytes(content)
        last.write_bytes(checkpoint)
    assert told in finished
    assert any("and is not trained again; the results are those of then" in line for line in finished)
    assert f"{told}; what was trained and scored before saw those of then" in unfinished
    assert not any("changed" in line for line in prepare(base, WORKER).remarks)


def test_the_backbone_of_any_of_our_checkpoints_is_weights_to_start_from(base: Config) -> None:
    model = new_model(base, [2], str(checkpoint_path(base.run_dir, 1)))
    found = {name: x for name, x in model.state_dict().items() if name.startswith("backbone.")}
    assert_equal_states(found, {name: weights(base, 1)[name] for name in found})
