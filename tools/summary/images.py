"""Whether runs have seen the same images: SHA-256 of the lists of their steps, as results.json states them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tools.summary.runs import Run


def describe_image_differences(runs: Sequence[Run]) -> list[str]:
    """Return a line for every data set, task and setting of which runs have not seen the same images.

    Joint training sees more by design and takes no part; lists that older runs do not state are not compared.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.fields.get("data.train_on") != "seen":
            place = tuple(str(run.fields[name]) for name in ("dataset", "task", "setting"))
            groups.setdefault(place, []).append(run)
    return [
        f"{' '.join(place)}: these runs have not seen the same {what}: {_tell(digests)}"
        for place, members in groups.items()
        for what, digests in _lists(members)
        if len({digest for _, digest in digests}) > 1
    ]


def _lists(runs: Sequence[Run]) -> Iterator[tuple[str, list[tuple[Run, str]]]]:
    """Yield what a list is of, and every run that states one, with its digest."""
    yield "validation images", _stated((run, run.results) for run in runs)
    for step in range(max(len(run.results["steps"]) for run in runs)):
        entries = [(run, run.results["steps"][step]) for run in runs if step < len(run.results["steps"])]
        yield f"training images in step {step}", _stated(entries, "train_images_sha256")


def _stated(
    entries: Iterable[tuple[Run, Mapping[str, Any]]], name: str = "val_images_sha256"
) -> list[tuple[Run, str]]:
    return [(run, entry[name]) for run, entry in entries if entry.get(name)]


def _tell(digests: Sequence[tuple[Run, str]]) -> str:
    """Name the runs of every list."""
    lists = dict.fromkeys(digest for _, digest in digests)
    sets = [", ".join(run.source for run, other in digests if other == digest) for digest in lists]
    return " | ".join(f"{names} ({digest[:12]})" for names, digest in zip(sets, lists, strict=True))
