"""What the tables of COCO's JSON share, whether of instances or of panoptic PNGs."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from tools.prepare.checked import Checked, FileName, Size, brief


def _read_flag(value: Any) -> bool:
    if type(value) not in (int, bool) or value not in (0, 1):
        raise ValueError("allowed are 0 and 1")
    return bool(value)


Flag = Annotated[bool, BeforeValidator(_read_flag)]


class Entry(Checked):
    """An image."""

    id: int
    file_name: FileName
    height: Size
    width: Size


class Image(NamedTuple):
    """An entry of images as it is found (None where it is damaged), what belongs to it, and what is wrong with it."""

    name: str
    entry: Entry | None
    annotations: list[tuple[int, Any]]
    problems: list[str]


def id_in_table(raw: Any, number: int) -> str:
    """How an entry of a table is called."""
    found = raw.get("id") if isinstance(raw, dict) else None
    name = raw.get("name") if isinstance(raw, dict) else None
    called = f" ({brief(name)})" if isinstance(name, str) else ""
    return (str(found) if type(found) is int else f"number {number} of the list") + called


def label_of(
    category_id: int, names: Mapping[int, str | None], where: str, problems: list[str]
) -> str | None:
    """The name of a category, None of a damaged one; one that is not there is added to `problems`."""
    if category_id not in names:
        problems.append(f"{where}: category_id: found {category_id}; allowed are {brief(sorted(names))}")
    return names.get(category_id)
