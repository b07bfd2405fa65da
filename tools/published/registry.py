"""`docs/published.tsv` and `docs/published_recipes.tsv`: what papers print, and how their methods are trained.

`docs/published.md` explains the columns.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = DOCS / "published.tsv"
RECIPES = DOCS / "published_recipes.tsv"

GROUPS = ("base", "incremental", "all")
Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Row:
    """One published result, after the last step.

    figures: mIoU in percent of 'base' (the classes of step 0), 'incremental' (all later ones together) and 'all', None
    where nothing is printed. background: whether background counts in 'base' and in 'all'. drops_zero_iou: whether
    classes whose IoU is exactly 0 are left out of 'all'. memory: exemplar images, as the source says it.
    """

    method: str
    paper: str
    dataset: str
    task: str
    setting: str
    backbone: str
    decoder: str
    memory: str
    figures: Mapping[str, float | None]
    background: Mapping[str, Answer]
    drops_zero_iou: bool
    source: str
    notes: str


@dataclass(frozen=True)
class Recipe:
    """How a method of a paper is trained on a data set: texts by the column of `docs/published_recipes.tsv`."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    texts: Mapping[str, str]

    def text(self, column: str, dataset: str) -> str:
        """Return what a column says of a data set; cells of recipes for several are split at '/' as their names are."""
        parts = self.texts[column].split("/")
        if len(self.datasets) > 1 and len(parts) == len(self.datasets):
            return parts[self.datasets.index(dataset)].strip()
        return self.texts[column]


def read_rows(path: Path = FIGURES) -> list[Row]:
    """Return the published results; raises ValueError naming file and line."""
    rows = []
    for number, cells in _read_table(path):
        try:
            rows.append(_make_row(cells))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}:{number}: not a published result ({type(error).__name__}: {error})"
            ) from error
    return rows


def read_recipes(path: Path = RECIPES) -> list[Recipe]:
    """Return the recipes; raises ValueError naming file and line."""
    recipes = []
    for number, cells in _read_table(path):
        try:
            datasets = cells["dataset"].partition(" ")[0].split("/")
            recipes.append(Recipe(tuple(cells["method"].split(" / ")), tuple(datasets), cells))
        except KeyError as error:
            raise ValueError(f"{path}:{number}: not a recipe (column {error} is missing)") from error
    return recipes


def recipe_of(row: Row, recipes: Sequence[Recipe]) -> Recipe | None:
    """Return the recipe of a row's method on its data set with its network, None where none is known."""
    for recipe in recipes:
        same_network = all(
            recipe.texts[part].startswith(getattr(row, part)) for part in ("backbone", "decoder")
        )
        if row.method in recipe.methods and row.dataset in recipe.datasets and same_network:
            return recipe
    return None


def is_method(row: Row, name: str) -> bool:
    """Whether a row is of a method, its variants with memory and its re-runs included: PLOP, PLOP-M, PLOP (re-run)."""
    return re.match(rf"{re.escape(name)}(?!\w)", row.method, re.IGNORECASE) is not None


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, dialect="excel-tab", strict=True)
        for cells in reader:
            if None in cells or None in cells.values():
                raise ValueError(f"{path}:{reader.line_num}: expected {len(reader.fieldnames or ())} cells")
            yield reader.line_num, cells


def _make_row(cells: Mapping[str, str]) -> Row:
    figures = {group: _figure(cells[f"miou_{group}"]) for group in GROUPS}
    background = {
        "base": _answer(cells["base_counts_background"] or "unknown"),
        "all": _answer(cells["background_counted"]),
    }
    texts = {name: cells[name] for name in Row.__dataclass_fields__ if name in cells}
    return Row(
        **{name: text for name, text in texts.items() if name != "drops_zero_iou"},
        figures=figures,
        background=background,
        drops_zero_iou=_answer(cells["drops_zero_iou"]) == "yes",
    )


def _figure(text: str) -> float | None:
    if not text:
        return None
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise ValueError(f"expected a percentage, found {text}")
    return value


def _answer(text: str) -> Answer:
    for answer in ("yes", "no", "unknown"):
        if text == answer:
            return answer
    raise ValueError(f"expected yes, no or unknown, found {text!r}")
