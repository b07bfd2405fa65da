"""Configs as people give them: YAML files and `--set key.sub=value`, and what is said of what is wrong in them."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from utils.config.fields import set_field
from utils.config.section import choice_of, common_fields
from utils.config.yaml_file import load_yaml


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}, expected a mapping of fields")
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """Split `key.sub=value`; the value is read as YAML. Raises ValueError."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"--set {override}: expected key.sub=value")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: the value is not valid YAML: {error}") from error


def apply_overrides(
    schema: type[BaseModel], values: dict[str, Any], overrides: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Set `key.sub=value` overrides in `values`; return the keys that were set and a line a problem.

    Where a section is chosen by name (`method=plop`, `data.name=folder`), another name than the one in `values` takes
    that section's own defaults, but for fields that all sections share; the same name changes nothing. Names come
    first: fields set beside them belong to the section named.
    """
    parsed, keys, problems = [], [], []
    for override in overrides:
        try:
            parsed.append(parse_override(override))
        except ValueError as error:
            problems.append(str(error))
    names = [(key, value) for key, value in parsed if isinstance(value, str) and names_section(schema, key)]
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
    error: ValidationError, schema: type[BaseModel], path: Path, overridden: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the dotted field and a line for every error that pydantic has found.

    path: the file that the values came from; overridden: keys that `--set` gave instead.
    """
    return [_describe(detail, schema, path, overridden) for detail in error.errors()]


def _describe(error: Any, schema: type[BaseModel], path: Path, overridden: Sequence[str]) -> tuple[str, str]:
    names, section = _walk(schema, error["loc"])
    field = ".".join(names)
    is_overridden = any(
        f"{field}.".startswith(f"{key}.") or key.startswith(f"{field}.") for key in overridden
    )
    source = "--set" if is_overridden else str(path)
    if error["type"] == "extra_forbidden":
        return field, f"{source}: {field}: unknown key; {_suggest(names[-1], list(section.model_fields))}"
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
        found = "nothing" if error["input"] is None else repr(error["input"])
        return field, (
            f"{source}: {field}: expected a name, or a mapping with one, found {found}; "
            f"known: {', '.join(choice.table)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    found = "" if isinstance(error["input"], dict | BaseModel) else f", found {error['input']!r}"
    return field, f"{source}: {field + ': ' if field else ''}{message}{found}"


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
