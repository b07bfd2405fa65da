"""configs/recipes/: every method in the recipe of its own authors, as docs/published_recipes.tsv has it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT
from tools.published.protocol import IN_RECIPE
from tools.published.registry import read_recipes
from tools.sweep import expand, read_sweep
from trainer.checks import check_config
from trainer.config import load_config
from utils.config.fields import flatten
from utils.distributed import Worker

RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))
COMPARISON = ROOT / "configs/comparison/voc_authors.yaml"
UNKNOWN = ("see config", "not read", "-", "1 analytic pass")
OF_PAPERS = ("mib", "lwf", "ilt", "plop", "ssul", "dkd", "mbs")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_would_run_on_the_gpus_that_its_header_names(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("base: ")]
    for what in ("Command:", "Data:", "Hardware:", "Time:", "Score:", "Protocol:"):
        assert what in header, what
    command = re.search(
        r"nproc_per_node=(\d+) -- main.py --config \./configs/recipes/(\w+)\.yaml --log ", header
    )
    assert command is not None
    assert command[2] == path.stem
    gpus = Worker(torch.device("cuda"), world_size=int(command[1]))
    config = load_config(path, check=lambda config: check_config(config, gpus))
    method = path.stem.removesuffix(f"_{config.data.name}")
    assert config.method.name in (method, f"plop_{method}")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_settings_of_the_authors(path: Path) -> None:
    method, dataset = path.stem.split("_")
    name = {"ewf": "mib+ewf", "nest": "plop+nest"}.get(method, method)
    known = [
        recipe
        for recipe in read_recipes()
        if recipe.methods[0].lower() == name and dataset in recipe.datasets
    ]
    if not known:
        assert method not in OF_PAPERS
        return
    (recipe,), config = known, load_config(path)
    fields = dict(flatten(config.model_dump(mode="json")))
    if fields["train.num_epochs_incremental"] is None:
        fields["train.num_epochs_incremental"] = fields["train.num_epochs"]
    for column, field in IN_RECIPE.values():
        text = recipe.text(column, dataset)
        if text in UNKNOWN:
            continue
        number = re.match(r"[\d.]+(?:e-?\d+)?", text)
        assert number is not None, column
        # Some name the learning rate of the backbone, others that of what lies behind it.
        values = [fields[field]]
        if field.startswith("train.lr"):
            values += [fields[field] * fields["train.lr_head_factor"]]
            values += [fields["train.lr_classifier_incremental"]] * (field == "train.lr_incremental")
        assert float(number[0]) in [pytest.approx(value) for value in values if value is not None], field
    schedule, checkpoint = recipe.texts["schedule"], recipe.texts["checkpoint"]
    if schedule not in UNKNOWN:
        assert fields["train.schedule"] == ("poly" if "poly" in schedule else "constant")
        assert (fields["train.warmup"] > 0) is ("warm" in schedule)
    if recipe.texts["optimiser"].startswith("SGD momentum 0.9 nesterov"):
        optimiser = [fields[f"train.{name}"] for name in ("optimizer", "momentum", "nesterov")]
        assert optimiser == ["sgd", 0.9, True]
    if checkpoint not in UNKNOWN:
        assert checkpoint.startswith(
            "best mean IoU" if fields["checkpoint"] == "best_validation_new" else "last"
        )


def test_the_sweep_of_recipes_runs_every_method_as_its_recipe_says() -> None:
    runs = expand(read_sweep(COMPARISON), {})
    assert {run.config.method.name for run in runs} == set(OF_PAPERS)
    for run in runs:
        name = run.config.method.name
        path = ROOT / f"configs/recipes/{name}_voc.yaml"
        expected = load_config(path, ["task='15-1'"], log=f"voc_authors_15-1_overlap_{name}")
        assert run.config.model_copy(update={"init_from": None}) == expected
    # Only methods of one recipe may start from one base step.
    shared = {run.config.method.name for run in runs if run.config.init_from is not None}
    assert shared <= {"mib", "lwf", "ilt"}
