"""Print every field of the configuration, its default and its meaning: the table of the README."""

import argparse
import json
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.config import METHODS, Config, flatten
from utils.arguments import new_parser


def config_table() -> str:
    """Return key, default, allowed values and meaning of every field as Markdown."""
    by_method = {key for preset in METHODS.values() for key, _ in flatten(preset)}
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, field in _fields():
        default = "by method" if key in by_method else _default(field)
        meaning = " ".join((field.description or "").split())
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) > 1:
            meaning += f" {', '.join(f'`{choice}`' for choice in get_args(field.annotation))}."
        lines.append(f"| `{key}` | {default} | {meaning} |")
    return "\n".join(lines)


def _fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default == "":
        return "empty"
    return f"`{json.dumps(field.default, default=str)}`".replace('"', "")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    return new_parser("python -m tools.config_table", __doc__, "python -m tools.config_table")


if __name__ == "__main__":
    make_parser().parse_args()
    print(config_table())
