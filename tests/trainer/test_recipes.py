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


@pytest.mark.parametrize("dataset", ["voc", "ade20k"])
@pytest.mark.parametrize("method", OF_PAPERS)
def test_a_recipe_has_the_settings_of_the_authors(method: str, dataset: str) -> None:
    (recipe,) = [
        recipe
        for recipe in read_recipes()
        if recipe.methods[0].lower() == method and dataset in recipe.datasets
    ]
    config = load_config(ROOT / f"configs/recipes/{method}_{dataset}.yaml")
    fields = dict(flatten(config.model_dump(mode="json")))
    if fields["train.num_epochs_incremental"] is None:
        fields["train.num_epochs_incremental"] = fields["train.num_epochs"]
    for column, field in IN_RECIPE.values():
        number = re.match(r"[\d.]+(?:e-?\d+)?", recipe.text(column, dataset))
        assert number is not None, column
        # Some name the learning rate of the backbone, others that of what lies behind it.
        factors = (1, fields["train.lr_head_factor"]) if field.startswith("train.lr") else (1,)
        assert float(number[0]) in [pytest.approx(fields[field] * factor) for factor in factors], field
    assert (fields["train.optimizer"], fields["train.momentum"], fields["train.nesterov"]) == (
        "sgd",
        0.9,
        True,
    )
    schedule = recipe.texts["schedule"]
    assert fields["train.schedule"] == ("constant" if method == "mbs" else "poly")
    assert (fields["train.warmup"] > 0) is ("warm" in schedule)
    assert fields["checkpoint"] == ("best_validation_new" if method in ("ssul", "mbs") else "last")
    assert recipe.texts["checkpoint"].startswith("best mean IoU" if method in ("ssul", "mbs") else "last")


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
