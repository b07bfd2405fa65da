"""datasets/memory.py: which images are kept; in a run, what of them is labelled."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.incremental import StepDataset, training_table
from datasets.memory import select_memories
from datasets.tasks import build_task
from datasets.transforms import TrainTransform
from tests.support.cli import write_tiny_config
from trainer.config import Config, load_config
from trainer.plan import prepare
from trainer.run import run
from utils.distributed import Worker

WORKER = Worker(torch.device("cpu"))
TASK = build_task([["a", "b"], ["c"], ["d"]], ("background", "a", "b", "c", "d"))
COMMON = {f"a{i}": {0, 1} for i in range(40)}
RARE = {f"b{i}": {0, 2} for i in range(3)}
LATER = {f"c{i}": {0, 3} for i in range(10)} | {f"d{i}": {0, 4} for i in range(5)}
CLASSES = {**COMMON, **RARE, **LATER}
IDS = [[*COMMON, *RARE], [f"c{i}" for i in range(10)], [f"d{i}" for i in range(5)]]


def select(size: int, strategy: str = "random", seed: int = 0) -> list[list[str]]:
    return select_memories(CLASSES, TASK, IDS, size=size, strategy=strategy, seed=seed)


def tiny(folder: Path, *overrides: str) -> Config:
    return load_config(write_tiny_config(folder), ["method=mib", *overrides])


@pytest.mark.parametrize("strategy", ["random", "class_balanced"])
def test_a_memory_holds_images_of_the_memory_and_the_step_before_without_repetition(strategy: str) -> None:
    base, first, second = select(12, strategy)
    assert base == []
    assert len(set(first)) == len(set(second)) == 12
    assert set(first) <= set(IDS[0])
    assert set(second) <= {*first, *IDS[1]}
    assert select(0, strategy) == [[], [], []]
    everything = select(1000, strategy)
    assert set(everything[2]) == {*IDS[0], *IDS[1]}


@pytest.mark.parametrize("strategy", ["random", "class_balanced"])
def test_the_seed_decides_and_the_order_of_the_images_does_not(strategy: str) -> None:
    assert select(12, strategy) == select(12, strategy)
    assert select(12, strategy) != select(12, strategy, seed=1)
    reordered = [ids[::-1] for ids in IDS]
    options = {"size": 12, "strategy": strategy, "seed": 0}
    assert select_memories(CLASSES, TASK, reordered, **options) == select(12, strategy)  # type: ignore[arg-type]


def test_a_balanced_memory_shows_classes_equally_often_as_far_as_there_are_images() -> None:
    _, first, second = select(12, "class_balanced")
    assert sum(image_id in RARE for image_id in first) == 3
    assert sum(image_id in COMMON for image_id in first) == 9
    assert [sum(image_id.startswith(c) for image_id in second) for c in "abc"] == [5, 3, 4]
    assert [image_id[0] for image_id in first[:4]] == ["a", "b", "a", "b"]


def test_an_image_counts_for_every_seen_class_that_it_shows() -> None:
    classes = {"both": {1, 2}, "a": {1}, "b": {2}, "future": {1, 3}}
    ids = [["both", "a", "b", "future"], ["future"], []]
    for seed in range(8):
        first = select_memories(classes, TASK, ids, size=2, strategy="class_balanced", seed=seed)[1]
        assert sum(1 in classes[i] for i in first) >= 1
        assert sum(2 in classes[i] for i in first) >= 1


@pytest.mark.parametrize(("labels", "expected"), [("step", {0, 3}), ("seen", {0, 1, 2, 3})])
def test_labels_of_memory_are_the_steps_or_those_of_all_seen_classes(labels: str, expected: set[int]) -> None:
    class Source:
        def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
            label = np.arange(5, dtype=np.uint8).repeat(10)[:, None].repeat(50, axis=1)
            return np.zeros((50, 50, 3), dtype=np.uint8), label

    step = TASK.steps[1]
    dataset = StepDataset(
        Source(),  # type: ignore[arg-type]
        ["own", "kept"],
        training_table(TASK, step, "step"),
        TrainTransform(50, 1.0, 1.0, (0.0, 0.0, 0.0), 255),
        seed=0,
        step=1,
        memory_ids=["kept"],
        memory_table=training_table(TASK, step, labels),
    )
    assert set(dataset[0, 0][1].unique().tolist()) == {0, 3}
    assert set(dataset[0, 1][1].unique().tolist()) == expected


def test_a_run_stores_its_memory_and_trains_on_it_once(tmp_path: Path) -> None:
    config = tiny(tmp_path, "memory.size=6", "memory.strategy=class_balanced")
    plan = prepare(config, WORKER)
    run(plan, WORKER)
    stored = (config.run_dir / "memory" / "step_1.txt").read_text().split()
    assert stored == list(plan.memory_ids[1])
    assert len(stored) == 6
    assert not (config.run_dir / "memory" / "step_0.txt").exists()
    trained = (config.run_dir / "train_images" / "step_1.txt").read_text().split()
    own = prepare(tiny(tmp_path, "log=other"), WORKER).image_ids[1]
    assert sorted(trained) == sorted({*own, *stored})
    assert set(own) & set(stored), "an image that is both is there once"
    said = "memory: 6 of these images, of at most 6, are of earlier steps"
    assert said in (config.run_dir / "log.txt").read_text()


def test_memory_beside_joint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory.size: data.train_on seen"):
        tiny(tmp_path, "method=joint", "memory.size=5")
