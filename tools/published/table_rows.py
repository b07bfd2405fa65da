"""Published rows in the table of `tools/summarize.py`, beside runs of the same data set, task and setting."""

from collections.abc import Iterator, Sequence

from tools.published.comparison import rows_of
from tools.published.counting import describe_counting
from tools.published.registry import Row, is_method
from tools.summary import groups
from tools.summary.runs import COLUMNS
from utils.metrics import harmonic_mean

MARK = "†"
LEGEND = (
    f"{MARK} published (docs/published.tsv; the protocol may differ: python -m tools.compare names how). Papers print "
    "base and incremental, not old and new."
)


def published_rows(
    own: Sequence[groups.Row], group_by: Sequence[str], registry: Sequence[Row], method: str | None
) -> tuple[list[groups.Row], list[str]]:
    """Return a row for every published result beside the own ones, and a line for every figure that has no column.

    A figure stands where its way of counting belongs: with background, or under 'w/o bg'; one of unknown counting, or
    of one that leaves out classes of IoU 0, has no column. method: as `registry.is_method` takes it, None takes all.
    """
    found = list(dict.fromkeys(index for row in own for index in _beside(row, registry)))
    rows, told = [], []
    for row in (registry[index] for index in found):
        if method is not None and not is_method(row, method):
            continue
        scores = _scores(row)
        if any(scores.values()):
            rows.append(groups.Row(_key(row, group_by), [], scores, row.source))
        else:
            told.append(_tell(row))
    return rows, told


def _beside(row: groups.Row, registry: Sequence[Row]) -> Iterator[int]:
    """Yield the places of the results of the data set, task and setting of a row's runs."""
    for run in row.runs:
        wanted = {id(result) for result in rows_of(run, registry)}
        yield from (index for index, result in enumerate(registry) if id(result) in wanted)


def _key(row: Row, group_by: Sequence[str]) -> tuple[str, ...]:
    name = f"{row.method} ({row.paper}) {MARK}"
    known = {"dataset": row.dataset, "task": row.task, "setting": row.setting}
    known |= {"method": name, "variant": name, "model.backbone": row.backbone, "model.name": row.decoder}
    return tuple(known.get(field, "–") for field in group_by)


def _tell(row: Row) -> str:
    """Say what a row without a column prints, and how it counts."""
    printed = ", ".join(f"{group} {figure:g}" for group, figure in row.figures.items() if figure is not None)
    counting = describe_counting(row, background_has_iou=True)
    return f"- {row.method} ({row.paper}), {row.task} {row.setting}: {printed}" + f"; {counting}" * bool(
        counting
    )


def _scores(row: Row) -> dict[str, tuple[float, float | None] | None]:
    """Return fractions by the columns of the table."""
    fractions = {group: None if figure is None else figure / 100 for group, figure in row.figures.items()}
    scores: dict[str, tuple[float, float | None] | None] = dict.fromkeys(COLUMNS)
    prefixes = {"yes": "", "no": "without_background."}
    if row.background["all"] in prefixes and fractions["all"] is not None and not row.drops_zero_iou:
        scores[f"{prefixes[row.background['all']]}miou_all"] = (fractions["all"], None)
    hiou = harmonic_mean(fractions["base"], fractions["incremental"])
    if row.background["base"] in prefixes and hiou is not None:
        scores[f"{prefixes[row.background['base']]}hiou"] = (hiou, None)
    return scores
