"""Fields of nested mappings by their dotted names: merged, set, left out, compared."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested mappings with its dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def is_below(field: str, names: Collection[str]) -> bool:
    """Whether a field is one of these fields or lies in one of these sections."""
    return any(field == name or field.startswith(f"{name}.") for name in names)


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Return 'field: theirs → ours' for every field that differs; free: fields and sections that may."""
    ours_flat, theirs_flat = dict(flatten(ours)), dict(flatten(theirs))
    return [
        f"{field}: {theirs_flat.get(field)} → {ours_flat.get(field)}"
        for field in sorted(ours_flat.keys() | theirs_flat.keys())
        if ours_flat.get(field) != theirs_flat.get(field) and not is_below(field, free)
    ]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings in one; where both have a field, `over` has it."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        merged[key] = (
            merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def without(values: Mapping[Any, Any], fields: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings without fields of these dotted names, fields whose items have them, and nameless ones."""
    kept = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or name in fields:
            continue
        if not any(field.startswith(f"{name}.") for field in fields):
            kept[key] = value
        elif isinstance(value, Mapping):
            kept[key] = without(value, fields, f"{name}.")
    return kept


def mentions(line: str, field: str) -> bool:
    """Whether a message names a field, a section that holds it or a field of it."""
    return re.search(rf"(?<![\w.]){re.escape(field)}(?!\w)", line) is not None


def set_field(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a field by its dotted name, sections made where they are missing; raises ValueError."""
    *sections, field = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ValueError(f"--set {key}: '{section}' is not a section")
    values[field] = value
