"""The table of `tools/summarize.py`, a row a group, as Markdown, LaTeX, CSV or JSON."""

import csv
import io
import json
from collections.abc import Callable, Sequence

from tools.summary.groups import Row, best_rows
from tools.summary.runs import COLUMNS
from utils.report.tables import escape_markdown


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
        table.append([*row.key, "published" if row.published else str(len(row.runs)), *cells])
    return table


def format_markdown(rows: Sequence[Row], group_by: Sequence[str]) -> str:
    """A Markdown table in percent."""
    header, *body = format_cells(rows, group_by, " ± ", "**{}**".format)
    rule = [":--"] * len(group_by) + ["--:"] * (len(header) - len(group_by))
    cells = [[escape_markdown(cell) for cell in row] for row in (header, rule, *body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def format_latex(rows: Sequence[Row], group_by: Sequence[str]) -> str:
    """A LaTeX tabular (booktabs) in percent."""
    header, *body = format_cells(rows, group_by, r" $\pm$ ", r"\textbf{{{}}}".format)
    special = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"}
    escape = str.maketrans(special | {c: rf"\{c}" for c in "_%&#${}"})
    num_names = len(group_by)
    rows_of_cells = [
        [cell.translate(escape) if i < num_names else cell.replace("–", "--") for i, cell in enumerate(row)]
        for row in (header, *body)
    ]
    lines = [" & ".join(row) + r" \\" for row in rows_of_cells]
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
    """Fractions, with the places of every group's runs."""
    groups = [
        {
            **dict(zip(group_by, row.key, strict=True)),
            "runs": [run.source for run in row.runs],
            **({"published": row.published} if row.published else {}),
            "scores": {
                score: None if found is None else {"mean": found[0], "std": found[1]}
                for score, found in row.scores.items()
            },
        }
        for row in rows
    ]
    return json.dumps(groups, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"md": format_markdown, "csv": format_csv, "latex": format_latex, "json": format_json}
