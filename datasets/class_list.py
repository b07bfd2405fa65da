"""Names and colours of the classes of one's own data: classes.txt, or classes.yaml in its place."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from datasets.listing import read_lines
from datasets.masks import MaskCoding
from utils.config.read import found_in
from utils.documents import load_yaml
from utils.images import Colour
from utils.labels import IGNORE_INDEX

MAX_CLASSES = 255  # ids 0..254; 255 is ignored
IGNORE_NAME = "ignore"
BACKGROUND = "background"

YAML_FORM = (
    "expected a list of classes, background first, as `- {name: road, color: [128, 64, 128]}`; position i, counted "
    "from 0, is id i; a last entry named 'ignore' is the colour of pixels that are ignored"
)


class ClassList(NamedTuple):
    """Class names by data set id, background first; their colours, or None; what the pixels of masks mean."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None
    coding: MaskCoding


class Entry(BaseModel):
    """One line of classes.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[StrictStr, Field(min_length=1)]
    color: (
        Annotated[list[Annotated[StrictInt, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)] | None
    ) = None


def is_background(name: str) -> bool:
    """Whether a name is one of the ways in which people write background."""
    plain = re.sub(r"[\s_\-.\ufeff]+", "", name).casefold()
    return plain in (BACKGROUND, "bg")


def describe_name(name: str, is_first: bool = False) -> str | None:
    """What is wrong with the name of a class, as the end of a sentence, if anything; is_first: it has id 0."""
    if not is_first and is_background(name):
        return f"names background ({name!r}), which is id 0 and stands first or not at all; move or rename it"
    hidden = sorted({c for c in name if not c.isprintable() and c not in "\u200c\u200d"})
    if hidden:
        return f"holds characters that do not show ({', '.join(map(ascii, hidden))}) in {name!r}; remove them"
    return None


def read_class_list(root: Path, expected: str) -> ClassList:
    """The classes of the folder `root`; classes.yaml wins over classes.txt.

    `expected` says the layout; raises FileNotFoundError, which ends with it, where there is neither file, and
    ValueError for what is wrong in it.
    """
    if os.path.lexists(root / "classes.yaml"):
        return read_classes_yaml(root / "classes.yaml")
    try:
        names = read_classes(root / "classes.txt")
    except FileNotFoundError:
        raise FileNotFoundError(f"{root / 'classes.txt'}: no such file. {expected}") from None
    return ClassList(names, None, MaskCoding(tuple(range(len(names)))))


def read_classes_yaml(path: Path) -> ClassList:
    """The classes of a classes.yaml; with colours, masks may be RGB.

    Raises ValueError with a line for everything that is wrong: not UTF-8 or YAML, another form, no class, too many, a
    name or a colour twice, colours for some classes only.
    """
    try:
        entries = TypeAdapter(list[Entry]).validate_python(load_yaml(path))
    except ValidationError as error:
        lines = [_describe(found) for found in error.errors()]
        raise ValueError("\n".join(f"{path}: {line}" for line in [*lines, YAML_FORM])) from None
    if entries and is_background(entries[0].name):
        entries[0] = entries[0].model_copy(update={"name": BACKGROUND})
    problems = _find_problems(entries)
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
    ids = [*range(len(entries))]
    if entries[-1].name == IGNORE_NAME:
        ids[-1] = IGNORE_INDEX
    names = tuple(
        entry.name for entry, class_id in zip(entries, ids, strict=True) if class_id != IGNORE_INDEX
    )
    colours = [_colour(entry) for entry in entries]
    if None in colours:
        return ClassList(names, None, MaskCoding(tuple(range(len(names)))))
    table = tuple(
        (colour, class_id) for colour, class_id in zip(colours, ids, strict=True) if colour is not None
    )
    coding = MaskCoding(tuple(range(len(names))), table)
    return ClassList(names, tuple(colour for colour, class_id in table if class_id != IGNORE_INDEX), coding)


def _find_problems(entries: list[Entry]) -> list[str]:
    """What is wrong with entries that are well-formed one by one."""
    problems: list[str] = []
    first_of: dict[Any, int] = {}
    for position, entry in enumerate(entries):
        for value, what in ((entry.name, "name"), (_colour(entry), "color")):
            if value is not None and first_of.setdefault(value, position) != position:
                problems.append(
                    f"entry {position} repeats the {what} {value!r} of entry {first_of[value]}; every class has its own"
                )
    names = [entry.name for entry in entries]
    problems += [
        f"entry {position} {problem}"
        for position, name in enumerate(names)
        if (problem := describe_name(name, is_first=position == 0))
    ]
    if names[:1] != [BACKGROUND]:
        problems.append(f"entry 0 is {names[0]!r}, not 'background'; {YAML_FORM}" if names else YAML_FORM)
    if IGNORE_NAME in names[:-1]:
        problems.append(
            f"entry {names.index(IGNORE_NAME)} is 'ignore', which is no class and has no id; put it last"
        )
    without = [entry.name for entry in entries if entry.color is None]
    if 0 < len(without) < len(entries):
        problems.append(f"no color for {', '.join(without)}; give every class one (masks in RGB), or none")
    num_classes = len(names) - (names[-1:] == [IGNORE_NAME]) - 1
    if not 1 <= num_classes < MAX_CLASSES:
        problems.append(
            f"found {max(0, num_classes)} classes besides background; allowed are 1 to {MAX_CLASSES - 1}"
        )
    return problems


def _colour(entry: Entry) -> Colour | None:
    return None if entry.color is None else (entry.color[0], entry.color[1], entry.color[2])


def _describe(error: Any) -> str:
    """A line for what pydantic found."""
    where = [f"entry {part}" if isinstance(part, int) else part for part in error["loc"][:2]]
    return ": ".join([*where, f"{error['msg']}{found_in(error)}"])


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names of a classes.txt by data set id, background first.

    Line i, counted from 1, is id i; where the first line says 'background', in any spelling, it is counted from 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, no class, a blank line, a name twice, or too many classes.
    """
    names = [line.strip() for line in read_lines(path)]
    first_line = 1 if names and is_background(names[0]) else 0
    names = [BACKGROUND, *names[first_line:]]
    line_of: dict[str, int] = {}
    for line, name in enumerate(names, start=first_line):
        if not name:
            raise ValueError(
                f"{path}: line {line} is blank; a line number is a class id, so remove the blank line"
            )
        if name in line_of:
            earlier = f"line {line_of[name]}" if line_of[name] else "id 0"
            raise ValueError(
                f"{path}: line {line} repeats the class {name!r} of {earlier}; give every class once"
            )
        if problem := describe_name(name, is_first=name == BACKGROUND and line == first_line):
            raise ValueError(f"{path}: line {line} {problem}")
        line_of[name] = line
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(
            f"{path}: found {len(names) - 1} classes besides background; allowed are 1 to {MAX_CLASSES - 1}"
        )
    return tuple(names)
