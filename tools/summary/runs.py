"""Runs as tables over many of them see them: results, and every field that runs can be grouped by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.fields import flatten
from utils.config.read import read_yaml
from utils.documents import load_json
from utils.report.schema import check_results

SCORES = {"miou_all": "all", "miou_old": "old", "miou_new": "new", "hiou": "hIoU"}
COLUMNS = {
    **SCORES,
    "forgetting": "forgetting",
    **{f"without_background.{score}": f"{name} w/o bg" for score, name in SCORES.items()},
}
"""Score of a run's last step → its heading; without 'w/o bg' background counts in all and old."""
SCALARS = ("method", "task", "setting", "dataset", "seed")
"""What results.json says of the run as a whole; it wins over a field of the config."""


class Run(NamedTuple):
    """A run's place (a folder, or 'TABLE:NAME'), its results.json, and every field that runs can be grouped by."""

    source: str
    results: Mapping[str, Any]
    fields: dict[str, Any]

    @property
    def is_complete(self) -> bool:
        """Whether all steps are there; of older runs, which do not state their number, all classes."""
        steps = self.results["steps"]
        if self.results.get("num_steps"):
            return len(steps) == int(self.results["num_steps"])
        return bool(steps) and len(steps[-1]["per_class_iou"]) == len(self.results["class_names"])

    def field(self, name: str, option: str) -> str:
        """Return a field as text; raises ValueError naming the option of the command line that asks for it."""
        if name not in self.fields:
            raise ValueError(
                f"{option} {name}: {self.source} has no such field; take {', '.join(SCALARS)} or a field of its config"
            )
        return str(self.fields[name])


def read_run(folder: Path) -> Run:
    """Read a run's config and results, if it has any yet; raises ValueError or OSError naming the file."""
    config = read_yaml(folder / "config.yaml")
    path = folder / "results.json"
    if not path.exists():
        flat = dict(flatten(config))
        told = {"method": flat.get("method.name", flat.get("method")), "dataset": flat.get("data.name")}
        return Run(str(folder), {"steps": [], "class_names": []}, _make_fields(flat, told))
    content = load_json(path)
    try:
        return make_run(str(folder), dict(flatten(config)), content)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not the results of a run ({reason})") from error


def make_run(source: str, config: Mapping[str, Any], results: Mapping[str, Any]) -> Run:
    """Return the run of a flat config and its results; raises ValueError, KeyError or TypeError for anything else."""
    check_results(results)
    scalars = {name: results[name] for name in SCALARS}
    for name, value in scalars.items():
        if not isinstance(value, int if name == "seed" else str):
            raise TypeError(f"{name}: expected {'a number' if name == 'seed' else 'a text'}, found {value!r}")
    for step in results["steps"]:
        for score in COLUMNS:
            score_of(step, score)
    return Run(source, results, _make_fields(config, scalars))


def _make_fields(config: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a flat config, over which what is known of the run as a whole wins; None is not known."""
    options = {name: value for name, value in config.items() if name != "method.name"}
    told = {**scalars, "variant": config.get("variant") or scalars["method"]}
    return options | {name: value for name, value in told.items() if value is not None}


def score_of(step: Mapping[str, Any], score: str) -> float | None:
    """Return a score of a step's entry by its dotted name."""
    value: Any = step
    for name in score.split("."):
        value = value[name]
    return value if value is None else float(value)
