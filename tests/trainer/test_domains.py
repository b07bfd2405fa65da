"""A task of domains: cities as steps, every class known, scores over the cities so far and over all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datasets import DATASETS, cityscapes
from datasets.domains import build_domain_task
from methods import METHODS
from tests.support.cli import call_main
from tests.support.data import stripes, write_sample
from tests.support.training import WORKER, tiny, train
from tools.compare import main as compare
from tools.evaluate import main as evaluate
from tools.summary.runs import read_run
from trainer.config import load_config
from trainer.plan import prepare
from utils.report.run_files import load_confusion

ABLE = ["finetune", "joint", "lwf", "ilt", "mib", "plop"]
DOMAINS = DATASETS["cityscapes"].domains
FRAMES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of each of the 21 cities; road and person in all, and their masks."""
    folder = tmp_path_factory.mktemp("cityscapes")
    for city in cityscapes.CITIES:
        split = "val" if city in ("frankfurt", "lindau", "munster") else "train"
        for frame in range(FRAMES):
            name = f"{city}_{frame:06d}_000019"
            mask = stripes(7, 24, 4, height=32, width=48)
            write_sample(
                folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png",
                folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png",
                mask,
                mode="L",
            )
    return folder


def fields(root: Path, method: str, task: str = "domains_11-5") -> list[str]:
    return ["data.name=cityscapes", f"data.root={root}", f"method={method}", f"task={task}"]


def city_of(image_id: str) -> str:
    return image_id.split("_")[0]


@pytest.mark.parametrize(
    ("name", "sizes"), [("11-5", [11, 5, 5]), ("11-1", [11, *[1] * 10]), ("1-1", [1] * 21)]
)
def test_published_tasks_cut_21_cities_into_steps(name: str, sizes: list[int]) -> None:
    task = build_domain_task(f"domains_{name}", cityscapes.CLASSES, DOMAINS)
    assert [len(group) for group in task.domains] == sizes
    assert task.name == name
    assert task.remarks == (), "steps of domains bring no class"
    assert {(step.num_old, step.num_new) for step in task.steps} == {(0, 20), (20, 0)}


def test_every_city_is_trained_in_its_step_and_validated_on_in_all_later_ones(
    root: Path, tmp_path: Path
) -> None:
    plan = prepare(tiny(tmp_path, "plan", *fields(root, "finetune")), WORKER)
    for ids, group in zip(plan.image_ids, plan.task.domains, strict=True):
        assert {city_of(i) for i in ids} == set(group)
        assert len(ids) == len(group) * (FRAMES - 1)
    assert sorted(map(city_of, plan.val.ids)) == sorted(cityscapes.CITIES)
    assert not {i for ids in plan.image_ids for i in ids} & set(plan.val.ids)


@pytest.mark.parametrize("method", ABLE)
def test_methods_that_need_no_new_class_learn_cities(method: str, root: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path, method, *fields(root, method), "memory.size=0")
    results = train(config)
    assert (results["task"], results["setting"], results["num_steps"]) == ("11-5", "domain", 3)
    assert all(len(step["per_class_iou"]) == 20 for step in results["steps"])
    assert [step["num_val_images"] for step in results["steps"]] == [11, 16, 21]
    assert [len(step["domains"]) for step in results["steps"]] == [11, 5, 5]
    assert {step["all_domains"]["num_val_images"] for step in results["steps"]} == {21}
    last = results["steps"][-1]
    assert last["all_domains"]["miou"] == last["miou_all"]
    # Both classes are labelled in every step, void is not: two thirds of the pixels of the crop's height count.
    counts = load_confusion(config.run_dir, 1).sum(axis=1)
    assert counts[0] == 0
    assert (counts[[1, 12]] > 0).all()
    assert counts.sum() == counts[[1, 12]].sum()
    run = read_run(config.run_dir)
    assert run.is_complete
    shorter: dict[str, Any] = {**results, "steps": results["steps"][:1]}
    assert not run._replace(results=shorter).is_complete


def test_a_checkpoint_evaluated_by_itself_gives_the_figures_of_its_step(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path, "finetune", *fields(root, "finetune"), "logging.report=true")
    results = train(config)
    assert (config.run_dir / "report.html").exists()
    checkpoint = str(config.run_dir / "checkpoints" / "step_1.pth")
    assert evaluate([checkpoint, "--device", "cpu", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("miou_all", "per_class_iou", "num_val_images"):
        assert figures[name] == results["steps"][1][name]


def test_the_published_rows_of_the_task_stand_beside_a_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path, "finetune", *fields(root, "finetune"))
    train(config)
    capsys.readouterr()
    assert compare([str(config.run_dir), "--format", "json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)
    assert {row["method"] for row in comparison["rows"]} == {"LwF", "LwF-MC", "ILT", "MiB", "PLOP", "RCIL"}


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.needs_new_classes])
def test_methods_that_need_new_classes_refuse(method: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"method\.name: {method} needs new classes in every step, .* use one of fine"
    ):
        tiny(tmp_path, method, *fields(root, method))


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("domains_22-1", r"starts with 22 domains, but the data set has 21"),
        ("domains_0-1", r"is no task of domains; expected 'domains_A-B'"),
        ("domains", r"is no task of domains"),
    ],
)
def test_a_wrong_task_of_domains_is_told(task: str, told: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        prepare(tiny(tmp_path, "wrong", *fields(root, "finetune", task)), WORKER)


def test_a_data_set_without_domains_and_fields_of_classes_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"learns domains, which this data set does not have"):
        prepare(tiny(tmp_path, "shapes", "task=domains_1-1", "method=finetune"), WORKER)
    with pytest.raises(ValueError, match=r"data\.image_lists: a task of domains"):
        prepare(tiny(tmp_path, "lists", *fields(root, "finetune"), f"data.image_lists={root}"), WORKER)
    order = f"class_order={list(range(20))}"
    with pytest.raises(ValueError, match=r"class_order: a task of domains knows every class"):
        prepare(tiny(tmp_path, "order", *fields(root, "finetune"), order), WORKER)


def test_a_dry_run_names_the_cities_of_every_step(root: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path, "dry", *fields(root, "finetune"))
    (tmp_path / "dry.yaml").write_text(config.to_yaml())
    result = call_main("--config", tmp_path / "dry.yaml", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "  dusseldorf, hamburg, jena, monchengladbach, stuttgart\n" in result.stdout
    assert "by setting" not in result.stdout
    assert load_config(tmp_path / "dry.yaml").task == "domains_11-5"
