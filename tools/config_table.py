"""Print every field of the configuration, its default and its meaning: the tables of docs/configuration.md."""

import argparse
import json
from collections.abc import Collection, Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from methods import METHODS
from trainer.config import Config
from utils.arguments import new_parser
from utils.config.fields import flatten
from utils.config.section import choice_of, common_fields

HEADER = ["| key | default | meaning |", "|---|---|---|"]


def config_tables(left_out: Collection[str] = ()) -> str:
    """Return a table of the common fields as Markdown, and one for every section that is chosen by name.

    left_out: names of sections that the tables do not know.
    """
    lines = [*HEADER, *(row(f"`{key}`", field) for key, field in fields(Config))]
    for name in Config.model_fields:
        choice = choice_of(Config, name)
        if choice is None:
            continue
        table = {option: section for option, section in choice.table.items() if option not in left_out}
        shared = common_fields(table)
        lines += ["", f"Fields of every `{name}`:", "", *HEADER]
        names = ", ".join(f"`{option}`" for option in table)
        default = f"`{choice.default}`" if choice.default else "required"
        lines.append(f"| `{name}.name` | {default} | Which one: {names}. |")
        lines += [row(f"`{name}.{key}`", field) for key, field in shared.items() if key != "name"]
        for option, section in table.items():
            own = {key: field for key, field in section.model_fields.items() if key not in shared}
            sets = dict(flatten(METHODS[option].defaults)) if name == "method" else {}
            if sets:
                told = ", ".join(
                    f"`{key}: {json.dumps(value)}`".replace('"', "") for key, value in sets.items()
                )
                lines += ["", f"`{name}: {option}` sets {told}."]
            if own:
                lines += ["", f"`{name}: {option}`:", "", *HEADER]
                lines += [row(f"`{name}.{key}`", field) for key, field in own.items()]
    return "\n".join(lines)


def row(key: str, field: FieldInfo) -> str:
    """Return a field's line of the table."""
    meaning = " ".join((field.description or "").split())
    allowed = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if len(allowed) > 1:
        meaning += f" {', '.join(f'`{choice}`' for choice in allowed)}."
    return f"| {key} | {_default(field)} | {meaning} |"


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name of every field but those of sections that are chosen by name."""
    for name, field in section.model_fields.items():
        if choice_of(section, name) is not None:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
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
    print(config_tables())
