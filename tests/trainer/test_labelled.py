"""Validation masks that label some classes only: what counts, whose colours, and a second folder for old classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data import Mask, stripes, write_folder
from tests.support.training import WORKER, tiny, train
from trainer.checkpoint import checkpoint_path, load_checkpoint
from trainer.config import Config
from trainer.hints import describe_unlearned
from trainer.palette import choose_palette
from trainer.plan import prepare
from utils.metrics import iou_of_labelled, iou_per_class, leave_out_unlabelled

CLASSES = ["pear", "kiwi", "fig"]
RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 128, 0), (0, 0, 255), (0, 0, 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pears and kiwis in colours, one of figs alone, and a run on the first."""
    folder = tmp_path_factory.mktemp("labelled")
    old: dict[str, Mask] = {f"o{i}": stripes(0, 1, 2, height=32, width=30 + i) for i in range(6)}
    write_folder(folder / "old", CLASSES[:2], old, dict(list(old.items())[:3]))
    colours = "".join(
        f"- {{name: {name}, color: {list(colour)}}}\n"
        for name, colour in (("background", BLACK), ("pear", RED), ("kiwi", GREEN))
    )
    (folder / "old" / "classes.yaml").write_text(colours)
    for mask in (folder / "old" / "masks").glob("*/*.png"):
        repaint(mask)
    new: dict[str, Mask] = {f"n{i}": stripes(0, 3, height=32, width=30 + i) for i in range(3)}
    write_folder(folder / "new", CLASSES, new, new)
    train(make(folder, "base", f"data.root={folder / 'old'}", "task=[[pear, kiwi]]"))
    return folder


def repaint(path: Path) -> None:
    ids = np.asarray(Image.open(path))
    Image.fromarray(np.array([BLACK, RED, GREEN], np.uint8)[ids]).save(path)


def make(folder: Path, log: str, *overrides: str) -> Config:
    return tiny(folder, log, "data.name=folder", *overrides)


def grown(folder: Path, log: str, *overrides: str) -> Config:
    base = checkpoint_path(folder / "runs" / "base", 0)
    fields = (f"data.root={folder / 'new'}", "task=[[pear, kiwi], [fig]]", f"init_from={base}")
    return make(folder, log, *fields, *overrides)


def test_pixel_counts_without_what_unlabelled_classes_leave_undecided() -> None:
    counts = np.array([[50, 30, 4, 6], [1, 2, 3, 4], [0, 0, 0, 0], [7, 5, 8, 20]])
    kept = leave_out_unlabelled(counts, [1, 2])
    np.testing.assert_array_equal(kept, [[50, 0, 0, 6], [0, 0, 0, 0], [0, 0, 0, 0], [7, 5, 8, 20]])
    iou = iou_of_labelled(iou_per_class(kept), [1, 2])
    np.testing.assert_allclose(iou, [50 / 63, np.nan, np.nan, 20 / 46])
    # Nothing but background is labelled: what is predicted there as it says nothing.
    only = iou_of_labelled(iou_per_class(leave_out_unlabelled(counts[:3, :3], [1, 2])), [1, 2])
    assert np.isnan(only).all()
    np.testing.assert_array_equal(leave_out_unlabelled(counts, []), counts)


def test_classes_that_no_validation_mask_labels_have_no_iou_and_are_named(folders: Path) -> None:
    config = grown(folders, "masks", "logging.report=true")
    plan = prepare(config, WORKER)
    told = [
        line for line in plan.remarks if line.startswith("warning: no validation mask labels pear, kiwi:")
    ]
    assert len(told) == 1
    assert "evaluate.labelled to all" in told[0]
    assert "data.val_root_old" in told[0]
    first, second = train(config)["steps"]
    assert set(first["per_class_iou"].values()) == {None}
    assert first["miou_all"] is None
    assert first["unlabelled"] == second["unlabelled"] == ["pear", "kiwi"]
    assert "taken over, trained on 6 images" in (config.run_dir / "report.html").read_text()
    assert second["per_class_iou"]["pear"] is second["per_class_iou"]["kiwi"] is None
    assert second["per_class_iou"]["fig"] is not None


def test_a_field_says_what_is_labelled_and_an_unknown_name_is_refused(folders: Path) -> None:
    assert (
        prepare(grown(folders, "all", "evaluate.labelled=all"), WORKER).evaluation.unlabelled == frozenset()
    )
    named = prepare(grown(folders, "named", "evaluate.labelled=[fig, kiwi]"), WORKER)
    assert named.evaluation.unlabelled == {1}
    assert any(line.startswith("warning: no validation mask labels pear: no IoU") for line in named.remarks)
    with pytest.raises(
        ValueError, match=r"evaluate\.labelled: found plum, but the task has the classes pear, "
    ):
        prepare(grown(folders, "unknown", "evaluate.labelled=[plum]"), WORKER)
    # A data set that names its classes itself labels all of them, whatever few images show.
    shapes = prepare(tiny(folders, "shapes", "data.num_val=1"), WORKER)
    assert shapes.evaluation.without_label == frozenset()


def test_a_second_folder_scores_the_old_classes(folders: Path) -> None:
    config = grown(folders, "both", f"data.val_root_old={folders / 'old'}")
    plan = prepare(config, WORKER)
    assert plan.evaluation.without_label == frozenset()
    assert plan.evaluation.image_ids == ("n0", "n1", "n2", "old/o0", "old/o1", "old/o2")
    first, second = train(config)["steps"]
    assert second["num_val_images"] == 6
    assert None not in second["per_class_iou"].values()
    assert second["miou_old"] is not None
    base = train(make(folders, "base", f"data.root={folders / 'old'}", "task=[[pear, kiwi]]"))
    # Images of figs alone say nothing of the first step's classes, but for what is background there.
    for name in ("pear", "kiwi"):
        assert first["per_class_iou"][name] == base["steps"][0]["per_class_iou"][name]


def test_a_second_folder_without_a_class_of_the_task_is_refused(folders: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", ["plum"], {"a": stripes(0, 1)}, {"a": stripes(0, 1)})
    with pytest.raises(
        ValueError, match=r"data\.val_root_old: .* has the classes plum, of which task 2-1 has none"
    ):
        prepare(grown(folders, "other", f"data.val_root_old={tmp_path / 'other'}"), WORKER)
    with pytest.raises(ValueError, match=r"data\.val_root_old: .*no such file"):
        prepare(grown(folders, "missing", f"data.val_root_old={tmp_path / 'none'}"), WORKER)


def test_classes_keep_the_colours_of_the_base_step(folders: Path) -> None:
    config = grown(folders, "colours")
    palette = prepare(config, WORKER).palette
    # The new class has the data set's own colour, which no class of the base step has.
    assert palette == (BLACK, RED, GREEN, (128, 128, 0))
    train(config)
    assert load_checkpoint(checkpoint_path(config.run_dir, 1))["palette"] == [list(c) for c in palette]
    assert prepare(config, WORKER).palette == palette
    assert choose_palette([BLACK, BLUE, GREEN, RED], [BLACK, RED]) == (BLACK, RED, GREEN, (128, 0, 0))
    assert choose_palette([BLACK, BLACK], []) == (BLACK, BLACK)


def test_a_step_of_few_images_is_told_and_makes_the_iterations_that_are_asked_for(folders: Path) -> None:
    plan = prepare(grown(folders, "few"), WORKER)
    told = [line for line in plan.remarks if "step 1 (fig) has 3 images: at train.batch_size 4 " in line]
    assert "an epoch is one iteration, the step has 1; set train.min_iterations" in told[0]
    more = prepare(grown(folders, "more", "train.min_iterations=7"), WORKER)
    assert more.num_iterations(more.task.steps[1], WORKER) == 7
    assert not any("min_iterations" in line for line in more.remarks)
    shapes = prepare(tiny(folders, "shapes", "train.min_iterations=10"), WORKER)
    assert [shapes.num_iterations(step, WORKER) for step in shapes.task.steps] == [12, 10]


def test_a_class_that_was_not_learned_is_explained() -> None:
    names = ["background", "cat", "dog", "cow"]
    confusion = np.array([[9000, 100, 800, 0], [0, 10, 0, 0], [0, 0, 10, 0], [20, 0, 60, 0]])
    told = describe_unlearned(names, 3, confusion, np.array([10, 0, 70, 0]), num_images=9, num_iterations=30)
    assert told == (
        "cow has IoU 0: it is never predicted. It has 0.80% of the labelled validation pixels, and the step 9 training "
        "images and 30 iterations; it is taken for dog (75%), background (25%); the old model takes it for dog (88%), "
        "background (12%); try more iterations (train.min_iterations=300), or rare.class_weights=balanced "
        "(docs/training.md, 'Rare classes'), or less hold on to the old model (method.output_weight, where the method "
        "has it), or method=ridge, which solves for classes and needs few images"
    )
    confusion[0, 3] = 5
    told = describe_unlearned(names, 3, confusion[:, :] * [[1], [1], [1], [9]], None, 400, 0)
    assert told.startswith("cow has IoU 0: it is predicted only where it is not. It has 6.7")
    assert told.endswith("and the step 400 training images; it is taken for dog (75%), background (25%)")
