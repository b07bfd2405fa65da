"""Configs as people give them: YAML files and `--set key.sub=value`, and what is said of what is wrong in them."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from utils.config.fields import set_field
from utils.config.section import Section, choice_of, common_fields
from utils.documents import MAX_DEPTH, DocumentError, load_yaml, parse_yaml

MAX_SHOWN = 120


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises FileNotFoundError or ValueError naming the file."""
    try:
        values = load_yaml(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such config file") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {show(values)}, expected a mapping of fields")
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """Split `key.sub=value`; the value is read as YAML. Raises ValueError."""
    key, separator, text = override.partition("=")
    told = override if len(override) <= MAX_SHOWN else f"{override[:MAX_SHOWN]} …"
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ValueError(f"--set {told}: expected key.sub=value")
    if key.count(".") > MAX_DEPTH:
        raise ValueError(f"--set {key[:60]} …: names more than {MAX_DEPTH} sections in each other")
    try:
        return key.strip(), parse_yaml(text)
    except DocumentError as error:
        raise ValueError(f"--set {told}: the value is not valid YAML: {error}") from error


def apply_overrides(
    schema: type[BaseModel], values: dict[str, Any], overrides: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Set `key.sub=value` overrides in `values`; return the keys that were set and a line a problem.

    Where a section is chosen by name (`method=plop`, `data.name=folder`), another name than the one in `values` takes
    that section's own defaults, but for fields that all sections share; the same name changes nothing. Names come
    first: fields set beside them belong to the section named. A field that is set twice has its last value.
    """
    parsed, keys, problems = [], [], []
    for override in overrides:
        try:
            parsed.append(parse_override(override))
        except ValueError as error:
            problems.append(str(error))
    names = [(key, value) for key, value in parsed if isinstance(value, str) and names_section(schema, key)]
    problems += _conflicts(parsed, names)
    for field, name in {key.removesuffix(".name"): name for key, name in names}.items():
        choose(schema, values, field, name)
    keys += [key for key, _ in names]
    for key, value in parsed:
        if (key, value) in names:
            continue
        section = key.partition(".")[0]
        if choice_of(schema, section) and isinstance(values.get(section), str):
            values[section] = {"name": values[section]}
        try:
            set_field(values, key, value)
            keys.append(key)
        except ValueError as error:
            problems.append(str(error))
    return keys, problems


def _conflicts(parsed: Sequence[tuple[str, Any]], names: Sequence[tuple[str, Any]]) -> list[str]:
    """Return a line for every override that another one would undo; names: those that choose a section."""
    problems = []
    sections: dict[str, list[str]] = {}
    for key, name in names:
        sections.setdefault(key.removesuffix(".name"), []).append(name)
    for field, chosen in sections.items():
        whole = [str(value) for key, value in parsed if key == field and not isinstance(value, str)]
        given = list(dict.fromkeys([*chosen, *whole]))
        if whole and len(given) > 1:
            problems.append(f"--set {field}: given as {' and as '.join(given)}; keep one")
    keys = [key for key, _ in parsed if key not in dict(names)]
    for index, key in enumerate(keys):
        undoing = next((later for later in keys[index + 1 :] if key.startswith(f"{later}.")), None)
        if undoing is not None:
            problems.append(f"--set {key}: undone by the later --set {undoing}; set it after that, or in it")
    return problems


def names_section(schema: type[BaseModel], key: str) -> bool:
    """Whether a key names the section that a field holds."""
    return choice_of(schema, key.removesuffix(".name")) is not None


def choose(schema: type[BaseModel], values: dict[str, Any], field: str, name: str) -> None:
    """Let a field of `values` hold the section `name`."""
    choice, value = choice_of(schema, field), values.get(field)
    assert choice is not None
    if name != name_in(schema, values, field):
        given = value if isinstance(value, dict) else {}
        kept = {key: given[key] for key in common_fields(choice.table) if key in given}
        values[field] = kept | {"name": name}


def name_in(schema: type[BaseModel], values: dict[str, Any], field: str) -> str:
    """Return the name of the section that `values` choose for a field, '' where they say none."""
    choice, value = choice_of(schema, field), values.get(field)
    name = value.get("name") if isinstance(value, dict) else value
    default = choice.default if choice else None
    return str(name if name is not None else default or "")


def describe_errors(
    error: ValidationError,
    schema: type[BaseModel],
    source_of: Callable[[str], object],
    overridden: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """Return the dotted field and a line for every error that pydantic has found.

    source_of: the file that gave a field, by its dotted name; overridden: keys that `--set` gave instead.
    """
    details = [(_walk(schema, detail["loc"])[0], detail) for detail in error.errors()]
    described = []
    for names, detail in details:
        # Of a field that may be a text or a list, pydantic tells what is wrong with it as either.
        alike = [other for found, other in details if found == names and other["input"] is detail["input"]]
        is_deeper = any(len(found) > len(names) and found[: len(names)] == names for found, _ in details)
        if detail is alike[0] and not is_deeper:
            message = " or ".join(
                [detail["msg"], *(other["msg"].removeprefix("Input should be ") for other in alike[1:])]
            )
            described.append(_describe(detail | {"msg": message}, schema, source_of, overridden))
    return described


def _describe(
    error: Any, schema: type[BaseModel], source_of: Callable[[str], object], overridden: Sequence[str]
) -> tuple[str, str]:
    names, section = _walk(schema, error["loc"])
    field = ".".join(names)
    is_overridden = any(
        f"{field}.".startswith(f"{key}.") or key.startswith(f"{field}.") for key in overridden
    )
    source = "--set" if is_overridden else source_of(field)
    if error["type"] == "extra_forbidden":
        return field, f"{source}: {field}: unknown key; {_describe_unknown(error, schema, names, section)}"
    if error["type"] == "missing":
        return field, f"{source}: {field}: missing, has no default"
    choice = choice_of(schema, names[0]) if len(names) == 1 else None
    if choice is not None and error["type"] == "union_tag_invalid":
        name = error["ctx"]["tag"]
        return (
            f"{field}.name",
            f"{source}: {field}.name: there is no '{name}'; {_suggest(name, list(choice.table))}",
        )
    if choice is not None and error["type"] == "union_tag_not_found":
        if isinstance(error["input"], dict):
            return field, f"{source}: {field}.name: missing, has no default; known: {', '.join(choice.table)}"
        found = show(error["input"])
        return field, (
            f"{source}: {field}: expected a name, or a mapping with one, found {found}; "
            f"known: {', '.join(choice.table)}"
        )
    plain = {"model_type": "expected a mapping of fields", "path_type": "expected a path"}
    message = plain.get(error["type"], error["msg"].removeprefix("Value error, "))
    return field, f"{source}: {field + ': ' if field else ''}{message}{found_in(error)}"


def found_in(error: Any) -> str:
    """What pydantic has found where it says that something is wrong, as the end of a sentence."""
    value, text = error["input"], show(error["input"])
    if isinstance(value, bool) and error["type"] == "string_type":
        text += " (YAML reads a bare yes, no, on or off so; put a text in quotes)"
    return "" if isinstance(value, BaseModel) else f", found {text}"


def show(value: Any) -> str:
    """Return a value as its writer knows it, and not longer than a line."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # Python writes out no more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} … ({len(text)} characters)"


def _describe_unknown(
    error: Any, schema: type[BaseModel], names: Sequence[str], section: type[BaseModel]
) -> str:
    """Say what to write instead of a key that a section does not have."""
    key, known = names[-1], [field.alias or name for name, field in section.model_fields.items()]
    if issubclass(section, Section) and key in section.moved:
        return section.moved[key]
    choice = choice_of(schema, names[0])
    if choice is not None and len(names) == 2:
        others = [name for name, other in choice.table.items() if key in other.model_fields]
        if others:
            return (
                f"it is a field of {names[0]} {', '.join(others)}, not of {error['loc'][1]}; "
                f"known here: {', '.join(known)}"
            )
    return _suggest(key, known)


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"


def _walk(schema: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """Return the keys and indices of a pydantic location, without types that it tried, and the last key's section."""
    section: Any = schema
    names: list[str] = []
    parts = list(location)
    while parts:
        part = parts.pop(0)
        if isinstance(part, int):
            names.append(str(part))
            continue
        if section is None:
            continue
        names.append(part)
        choice = choice_of(section, part)
        if choice is not None and parts:
            section = choice.table[str(parts.pop(0))]
            continue
        field = section.model_fields.get(part)
        below = field.annotation if field and hasattr(field.annotation, "model_fields") else None
        if below is None and not parts:
            break
        section = below
    return names, section
