"""Mean ± standard deviation over the seeds of many runs, as a table or a figure.

Runs are folders with config.yaml; others (runs/class_index) and files are passed over. A run that has not finished its
task takes no part in a mean and is named below the table, and so is a row whose runs differ in more than the seed. The
deviation is that of a sample (n − 1). The best mean of a column is bold, among rows that differ in `method` or
`variant` only; `joint`, the upper bound, does not compete.
"""

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config import MAY_DIFFER, flatten, read_yaml
from utils.arguments import new_parser
from utils.files import write_atomic

EXAMPLES = """
python -m tools.summarize runs/*
python -m tools.summarize runs/* --group-by method,train.lr_incremental --format latex --plot comparison.png
"""
SCORES = {"miou_all": "all", "miou_old": "old", "miou_new": "new", "hiou": "hIoU"}
RIVALS = ("method", "variant")
"""Fields whose rows compete for the best score."""
COLUMNS = {
    **SCORES,
    "forgetting": "forgetting",
    **{f"without_background.{score}": f"{name} w/o bg" for score, name in SCORES.items()},
}
"""Score of a run's last step → its heading; without 'w/o bg' background counts in all and old."""


class Run(NamedTuple):
    """A run's folder, its results.json, and every field that runs can be grouped by."""

    folder: Path
    results: dict[str, Any]
    fields: dict[str, Any]

    @property
    def is_complete(self) -> bool:
        """Whether its last step has learned every class of the task."""
        steps = self.results["steps"]
        return bool(steps) and len(steps[-1]["per_class_iou"]) == len(self.results["class_names"])


class Row(NamedTuple):
    """The runs of one group, all complete, and their scores: (mean, deviation) as fractions, or None."""

    key: tuple[str, ...]
    runs: list[Run]
    scores: dict[str, tuple[float, float | None] | None]


def read_run(folder: Path) -> Run:
    """Read a run's config and results, if it has any yet; raises ValueError or OSError naming the file."""
    config = dict(flatten(read_yaml(folder / "config.yaml")))
    path = folder / "results.json"
    if not path.is_file():
        return Run(folder, {"steps": [], "class_names": []}, config)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        config["variant"] = config.get("variant") or results["method"]
        scalars = {name: results[name] for name in ("method", "task", "setting", "dataset", "seed")}
        for step in results["steps"]:
            for score in COLUMNS:
                score_of(step, score)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the results of a run ({type(error).__name__}: {error})") from error
    return Run(folder, results, config | scalars)


def score_of(step: Mapping[str, Any], score: str) -> float | None:
    """Return a score of a step's entry by its dotted name."""
    value: Any = step
    for name in score.split("."):
        value = value[name]
    return value if value is None else float(value)


def summarize(runs: Sequence[Run], group_by: Sequence[str]) -> list[Row]:
    """Return a row for every group of complete runs, in the order of the runs.

    Raises ValueError where a run has no such field.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in (run for run in runs if run.is_complete):
        unknown = [field for field in group_by if field not in run.fields]
        if unknown:
            raise ValueError(
                f"--group-by {unknown[0]}: {run.folder} has no such field; take method, task, setting, dataset, seed "
                "or a field of its config.yaml"
            )
        groups.setdefault(tuple(str(run.fields[field]) for field in group_by), []).append(run)
    return [
        Row(key, members, {score: mean_and_deviation(members, score) for score in COLUMNS})
        for key, members in groups.items()
    ]


def mixed_fields(row: Row) -> list[str]:
    """Return the fields, but for the seed, that may change results and in which the runs of a row differ."""
    fields = sorted({field for run in row.runs for field in run.fields})
    free = (*MAY_DIFFER, "seed", "init_from", "class_names")
    return [
        field
        for field in fields
        if len({str(run.fields[field]) for run in row.runs if field in run.fields}) > 1
        and not any(field == name or field.startswith(f"{name}.") for name in free)
    ]


def mean_and_deviation(runs: Sequence[Run], score: str, step: int = -1) -> tuple[float, float | None] | None:
    """Return the mean of a step's score over runs and its deviation (None for one); None if a run has no value."""
    values = [score_of(run.results["steps"][step], score) for run in runs]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def best_rows(rows: Sequence[Row], group_by: Sequence[str], score: str) -> set[int]:
    """Indices of the rows that are best among those that differ in method or variant only."""
    rivals: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        rest = tuple(part for part, field in zip(row.key, group_by, strict=True) if field not in RIVALS)
        competes = row.scores[score] is not None and row.runs[0].fields["method"] != "joint"
        if competes:
            rivals.setdefault(rest if set(RIVALS) & set(group_by) else (), []).append(index)
    sign = -1 if score == "forgetting" else 1

    def mean(index: int) -> float:
        found = rows[index].scores[score]
        assert found is not None
        return sign * found[0]

    return {i for group in rivals.values() for i in group if mean(i) == max(map(mean, group))}


def format_cells(
    rows: Sequence[Row], group_by: Sequence[str], plus_minus: str, bold: Callable[[str], str]
) -> list[list[str]]:
    """Return header and rows of texts, in percent, the best ones bold."""
    best = {score: best_rows(rows, group_by, score) for score in COLUMNS}
    table = [[*group_by, "runs", *COLUMNS.values()]]
    for index, row in enumerate(rows):
        cells = []
        for score, found in row.scores.items():
            text = "–"
            if found is not None:
                mean, deviation = found
                text = f"{100 * mean:.1f}" + (
                    f"{plus_minus}{100 * deviation:.1f}" if deviation is not None else ""
                )
            cells.append(bold(text) if index in best[score] else text)
        table.append([*row.key, str(len(row.runs)), *cells])
    return table


def format_markdown(rows: Sequence[Row], group_by: Sequence[str]) -> str:
    """A Markdown table in percent."""
    header, *body = format_cells(rows, group_by, " ± ", "**{}**".format)
    rule = [":--"] * len(group_by) + ["--:"] * (len(header) - len(group_by))
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, rule, *body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def format_latex(rows: Sequence[Row], group_by: Sequence[str]) -> str:
    """A LaTeX tabular (booktabs) in percent."""
    header, *body = format_cells(rows, group_by, r" $\pm$ ", r"\textbf{{{}}}".format)
    escape = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "–": "--"})
    lines = [" & ".join(cell.translate(escape) for cell in row) + r" \\" for row in (header, *body)]
    columns = "l" * len(group_by) + "r" * (len(header) - len(group_by))
    start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*start, *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def format_csv(rows: Sequence[Row], group_by: Sequence[str]) -> str:
    """Fractions: a mean and a deviation column for every score."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [*group_by, "runs", *(f"{score}_{part}" for score in COLUMNS for part in ("mean", "std"))]
    )
    for row in rows:
        parts = [part for found in row.scores.values() for part in (found or (None, None))]
        writer.writerow([*row.key, len(row.runs), *parts])
    return buffer.getvalue()


def format_json(rows: Sequence[Row], group_by: Sequence[str]) -> str:
    """Fractions, with the folders of every group's runs."""
    groups = [
        {
            **dict(zip(group_by, row.key, strict=True)),
            "runs": [str(run.folder) for run in row.runs],
            "scores": {
                score: None if found is None else {"mean": found[0], "std": found[1]}
                for score, found in row.scores.items()
            },
        }
        for row in rows
    ]
    return json.dumps(groups, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"md": format_markdown, "csv": format_csv, "latex": format_latex, "json": format_json}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.summarize", __doc__, EXAMPLES)
    what = parser.add_argument_group("input")
    what.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    what.add_argument(
        "--group-by",
        default="method,task",
        metavar="FIELD,FIELD",
        help="fields of results.json or config.yaml whose runs belong together; variant: the row of an ablation, else "
        "the method; default: method,task",
    )
    how = parser.add_argument_group("output")
    how.add_argument("--format", choices=FORMATS, default="md", help="of the table; default: md")
    how.add_argument("--plot", type=Path, metavar="FILE", help="write a figure there (PNG)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    group_by = [field.strip() for field in args.group_by.split(",")]
    try:
        for folder in args.runs:
            if not folder.exists():
                raise FileNotFoundError(f"{folder}: no such folder; name folders of runs, such as runs/*")
        runs = [read_run(folder) for folder in args.runs if (folder / "config.yaml").is_file()]
        if not runs:
            raise ValueError(
                "none of these is the folder of a run, which holds config.yaml; name some, such as runs/*"
            )
        rows = summarize(runs, group_by)
        if args.plot is not None:
            from tools.summary.figure import draw  # matplotlib takes longer to load than a table to print

            write_atomic(args.plot, draw(rows))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(FORMATS[args.format](rows, group_by), end="")
    incomplete = [run for run in runs if not run.is_complete]
    # Beside a format for machines they must not stand in it.
    out = sys.stdout if args.format == "md" else sys.stderr
    for row in rows:
        if mixed := mixed_fields(row):
            print(
                f"\n{' · '.join(row.key)} mixes runs that differ in {', '.join(mixed)}; see --group-by",
                file=out,
            )
    if incomplete:
        print("\nIncomplete, in no mean:\n", file=out)
    for run in incomplete:
        print(f"- {run.folder} ({len(run.results['steps'])} steps finished)", file=out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
