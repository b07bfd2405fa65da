"""A run trains with the terms of its method, and on its labels."""

from __future__ import annotations

from datasets.incremental import training_table
from datasets.shapes import ShapesDataset
from datasets.tasks import build_task
from tests.support.runs import CLASSES_OF, TERMS, Finished, Workplace
from trainer.config import load_config


def test_finetune_has_cross_entropy_only(place: Workplace) -> None:
    assert terms_of_step_1(place.finished("voc")) == {"cross_entropy"}


def test_terms_that_are_switched_off_leave_the_one_that_is_on(place: Workplace) -> None:
    assert terms_of_step_1(place.finished("ade20k")) == {"cross_entropy", "output_distillation"}


def test_a_term_that_is_switched_off_is_absent(place: Workplace) -> None:
    expected = {"cross_entropy", "feature_distillation", "output_distillation"}
    assert terms_of_step_1(place.finished("folder")) == expected


def test_joint_trains_on_the_images_and_labels_of_all_steps_so_far(place: Workplace) -> None:
    run, mbs = place.finished("joint"), place.finished("shapes")
    assert terms_of_step_1(run) == {"cross_entropy"}
    assert run.train_images(0) == mbs.train_images(0)
    both = {*mbs.train_images(0), *mbs.train_images(1)}
    assert run.train_images(1) == [i for i in ShapesDataset("train", 16, 32).ids if i in both]
    assert len(both) > len(mbs.train_images(1))
    config = load_config(place.config, ["method=joint"])
    task = build_task(config.task, CLASSES_OF["shapes"])
    table = training_table(task, task.steps[1], config.data.train_on)
    assert [table[i] for i in (0, 5, 1, 6, 4, 2, 255)] == [0, 1, 2, 3, 4, 0, 255]


def terms_of_step_1(run: Finished) -> set[str]:
    lines = run.metrics(step=1)
    assert lines
    return set.intersection(*(set(line) for line in lines)) & set(TERMS)
