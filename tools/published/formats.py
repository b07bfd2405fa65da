"""Comparisons as text, Markdown and JSON; figures in percent."""

import json
from collections.abc import Sequence
from typing import Any

from tools.published.comparison import Comparison, Match
from tools.published.counting import Figure
from tools.published.protocol import Difference, nearness
from tools.published.registry import GROUPS


def format_text(comparisons: Sequence[Comparison], limit: int) -> str:
    """A block a published row; limit: rows of a comparison, 0 is all."""
    lines: list[str] = []
    for comparison in comparisons:
        lines += [f"{comparison.title}: {_count(comparison)}", ""]
        for match in _nearest(comparison, limit):
            row = match.row
            lines += [
                f"{row.method} ({row.paper}), {row.backbone} {row.decoder}",
                f"  {'':<10}  {'base':>16}  {'incremental':>16}  {'all':>16}",
                f"  {'published':<10}  " + "  ".join(f"{_printed(row.figures[g]):>16}" for g in GROUPS),
                f"  {'here':<10}  " + "  ".join(f"{_ours(match.ours[g]):>16}" for g in GROUPS),
                f"  counting: {match.counting or 'the same'}",
                f"  differs in: {describe(match.differences)}",
                f"  source: {row.source}" + (f"; {row.notes}" if row.notes else ""),
                "",
            ]
        lines += _left_out(comparison, limit)
    return "\n".join(lines).rstrip() + "\n"


def format_markdown(comparisons: Sequence[Comparison], limit: int) -> str:
    """A table a comparison."""
    lines: list[str] = []
    for comparison in comparisons:
        lines += [f"## {comparison.title}", "", f"{_count(comparison).capitalize()}.", ""]
        if comparison.matches:
            header = ("method", "published: base / incremental / all", "here, counted so", "counting")
            lines += [_row((*header, "differs in", "source")), _row([":--"] * 6)]
        for match in _nearest(comparison, limit):
            row = match.row
            printed = " / ".join(_printed(row.figures[group]) for group in GROUPS)
            ours = " / ".join(_ours(match.ours[group]) for group in GROUPS)
            cells = (f"{row.method} ({row.paper})", printed, ours, match.counting)
            lines.append(_row((*cells, describe(match.differences), row.source)))
        lines += ["", *_left_out(comparison, limit)]
    return "\n".join(lines).rstrip() + "\n"


def format_json(comparisons: Sequence[Comparison], limit: int) -> str:
    """Everything that is known of every row; a figure of unknown counting is a list: with background, without."""
    content = [
        {
            "runs": [run.source for run in comparison.runs],
            **{"dataset": comparison.dataset, "task": comparison.task, "setting": comparison.setting},
            "rows": [_match_as_json(match) for match in _nearest(comparison, limit)],
        }
        for comparison in comparisons
    ]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _match_as_json(match: Match) -> dict[str, Any]:
    row = match.row
    names = ("method", "paper", "setting", "backbone", "decoder", "memory")
    return {
        **{name: getattr(row, name) for name in names},
        "published": dict(row.figures),
        "background_counts": dict(row.background),
        "drops_zero_iou": row.drops_zero_iou,
        "here": {group: _as_json(figure) for group, figure in match.ours.items()},
        "distance": nearness(match.differences),
        "differences": [difference._asdict() for difference in match.differences],
        "source": row.source,
        "notes": row.notes,
    }


def _as_json(figure: Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    value = figure.values[0] if len(figure.values) == 1 else list(figure.values)
    return {"mean": value, "std": figure.deviation}


def describe(differences: Sequence[Difference]) -> str:
    """Say what differs, and what of the row's protocol is not known."""
    known = [f"{d.aspect} ({d.theirs} there, {d.ours} here)" for d in differences if d.theirs is not None]
    unknown = [d.aspect for d in differences if d.theirs is None]
    told = [*known, *([f"not known there: {', '.join(unknown)}"] if unknown else [])]
    return "; ".join(told) or "nothing that is known"


def _nearest(comparison: Comparison, limit: int) -> list[Match]:
    return comparison.matches[: limit or None]


def _count(comparison: Comparison) -> str:
    number = len(comparison.matches)
    return f"{number or 'no'} published row{'s' * (number != 1)} of this data set, task and setting"


def _left_out(comparison: Comparison, limit: int) -> list[str]:
    missing = len(comparison.matches) - len(_nearest(comparison, limit))
    return [f"{missing} rows of farther protocols are left out; --rows 0 shows all.", ""] if missing else []


def _printed(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:g}"


def _ours(figure: Figure | None) -> str:
    return "–" if figure is None else str(figure)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
