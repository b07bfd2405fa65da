"""Results as tables: CSV of fractions; Markdown and plain text in percent, for people."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from utils.metrics import CONVENTIONS
from utils.report.plots import run_title
from utils.report.results import GROUPS, SCORES
from utils.units import format_duration

_MIOU_GROUPS = ("all", "old", "new", "base", "incremental")


def format_table(results: Mapping[str, Any]) -> str:
    """The plain-text table for the console: one line a step, in percent, and the mean of `all` over the steps."""
    rows = [["step", "new classes", *SCORES.values()]]
    rows += [_score_row(step, SCORES) for step in results["steps"]]
    rows.append(["avg", "", _percent(results["miou_avg"])] + [""] * (len(SCORES) - 1))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([f"{run_title(results)} (percent)", lines[0], rule, *lines[1:-1], rule, lines[-1]])


def format_csv(results: Mapping[str, Any]) -> str:
    """One row a step; an empty cell where there is no value."""
    names = results["class_names"]
    counts = ["num_train_images", "num_val_images", "seconds"]
    without = [f"{score}_without_background" for score in GROUPS]
    # ADE20K has a class called "step": the prefix keeps class columns apart from the others.
    header = ["step", "new_classes", *SCORES, *without, *counts, *(f"iou_{name}" for name in names)]
    rows: list[Sequence[object]] = [header]
    for step in results["steps"]:
        row: list[object] = [step["step"], ", ".join(step["new_classes"]), *(step[score] for score in SCORES)]
        row += [step["without_background"][score] for score in GROUPS]
        row += [step[count] for count in counts]
        row += [step["per_class_iou"].get(name) for name in names]
        rows.append(row)
    return to_csv(rows)


def format_markdown(results: Mapping[str, Any]) -> str:
    steps = results["steps"]
    per_class = [
        [name, *(_percent(step["per_class_iou"].get(name, np.nan)) for step in steps)]
        for name in results["class_names"]
    ]
    blocks = [
        f"# {run_title(results)}",
        f"Device {results['device']}, commit {results['commit'] or 'unknown'}. IoU in percent; forgetting in points. "
        f"Mean of `all` over the steps: **{_percent(results['miou_avg'])}**.",
        "## Groups",
        "Background counts in all, base and old (at step 0: in new).",
        _markdown_table(
            ["step", "new classes", *SCORES.values()], [_score_row(step, SCORES) for step in steps]
        ),
        "## Groups without background",
        _markdown_table(
            ["step", "new classes", *GROUPS.values()],
            [
                _score_row(
                    {**step["without_background"], "step": step["step"], "new_classes": step["new_classes"]},
                    GROUPS,
                )
                for step in steps
            ],
        ),
        "## Groups as papers count them",
        f"{' / '.join(CONVENTIONS)}: mib leaves background out; plop counts it in all, base and old; mbs counts it in "
        "all only, and leaves classes of IoU 0 out of all. For both, ADE20K's unlabelled pixels are background.",
        _markdown_table(
            ["step", *_MIOU_GROUPS],
            [[str(step["step"]), *(_by_convention(step, group) for group in _MIOU_GROUPS)] for step in steps],
            num_left=1,
        ),
        "## IoU of every class",
        "Empty: not learned yet. –: the class is absent from labels and predictions, or cannot occur in the labels.",
        _markdown_table(["class", *(f"step {step['step']}" for step in steps)], per_class, num_left=1),
        "## Images and time",
        _markdown_table(
            ["step", "training images", "validation images", "training time"],
            [
                [
                    *(str(step[key]) for key in ("step", "num_train_images", "num_val_images")),
                    format_duration(step["seconds"]),
                ]
                for step in steps
            ],
            num_left=0,
        ),
    ]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 2) -> str:
    """A table whose first `num_left` columns are aligned to the left, the others to the right."""
    rules = [":--" if column < num_left else "--:" for column in range(len(header))]
    escaped = [[escape_markdown(cell) for cell in row] for row in (header, rules, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)


def escape_markdown(text: str) -> str:
    """A cell's text as it is meant: no HTML, no end of the cell or the line."""
    for character, escape in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(character, escape)
    return printable(text)


def printable(text: str) -> str:
    """A text in which what a terminal or a page would obey is written out."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else ascii(c)[1:-1] for c in text)


def _score_row(step: Mapping[str, Any], scores: Iterable[str]) -> list[str]:
    return [
        str(step["step"]),
        printable(_shorten(step["new_classes"])),
        *(_percent(step[score]) for score in scores),
    ]


def _by_convention(step: Mapping[str, Any], group: str) -> str:
    """A group's mIoU under every convention."""
    return " / ".join(_percent(step["groups"][convention][group]["miou"]) for convention in CONVENTIONS)


def _percent(fraction: float | None) -> str:
    """One decimal; a dash for an empty group, nothing for nan (a class not learned yet)."""
    if fraction is None:
        return "–"
    return "" if np.isnan(fraction) else f"{100 * fraction:.1f}"


def _shorten(names: Sequence[str], width: int = 30) -> str:
    """The names in at most `width` characters where possible: the first of them, and how many there are."""
    whole = ", ".join(names)
    if len(whole) <= width:
        return whole
    ending = f", … ({len(names)})"
    kept = list(names)
    while len(kept) > 1 and len(", ".join(kept) + ending) > width:
        kept.pop()
    return ", ".join(kept) + (ending if len(names) > 1 else "")


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """CSV with a line feed after every row."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
