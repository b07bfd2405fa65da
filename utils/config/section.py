"""A section of a config: frozen, strict, its documentation beside each field; and a section chosen by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from utils.config.values import check_path

MAX_NUMBER = 10**12
"""No field needs more, and what is larger does not fit where numbers go (random states, curves, memory)."""


class Section(BaseModel):
    """Fields that belong together; unknown ones, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    moved: ClassVar[Mapping[str, str]] = {}
    """What to do instead of setting a key that is no field (any more), as the end of a sentence."""

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """pydantic takes true for 1, and 1 for true."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        allowed = set(get_args(annotation)) or {annotation}
        if isinstance(value, bool) and bool not in allowed and allowed & {int, float}:
            raise ValueError("expected a number, not true or false")
        if isinstance(value, int | float) and not isinstance(value, bool) and bool in allowed:
            raise ValueError("expected true or false" + (", or a text" if str in allowed else ""))
        items = value if get_origin(annotation) is list and isinstance(value, list) else []
        if any(isinstance(item, bool) for item in items):
            raise ValueError("expected a list without true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _fits_the_machine(cls, value: object) -> object:
        """Expands `~`; what no file system and no random state takes is told before it is tried."""
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int | float) and abs(item) > MAX_NUMBER:
                raise ValueError(f"expected a number of at most {MAX_NUMBER:.0e} in size")
        return check_path(value) if isinstance(value, Path) else value


class NamedSection(Section):
    """A section that a table holds under `name`, with fields of its own."""

    name: str = ""
    """Which one: its key in the table, '' for a section that stands by itself."""


@dataclass(frozen=True)
class Choice:
    """What a field of type `choice(...)` may hold: a section of `table`, told by its `name`; `default` without one."""

    table: Mapping[str, type[NamedSection]]
    default: str | None


def choice(table: Mapping[str, type[NamedSection]], default: str | None = None) -> Any:
    """Return the type of a field that holds one section of a table, by name.

    In YAML it is a mapping with `name` and that section's fields, or the name alone for its defaults. A mapping
    without a name is of `default`.
    """

    def expand(value: object) -> object:
        value = {"name": value} if isinstance(value, str) else value
        if isinstance(value, Mapping) and default is not None:
            return {"name": default, **value}
        return value

    def tag_of(value: Any) -> str | None:
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
        # A tag that no section has names the wrong value in the error.
        return None if name is None else str(name)

    sections = tuple(Annotated[section, Tag(name)] for name, section in table.items())
    return Annotated[
        Union[sections],  # noqa: UP007
        Discriminator(tag_of),
        BeforeValidator(expand),
        Choice(table, default),
    ]


def common_fields(table: Mapping[str, type[NamedSection]]) -> dict[str, FieldInfo]:
    """Return the fields that all sections of a table share: one meaning, one default."""
    first, *others = table.values()

    def is_shared(name: str, field: FieldInfo) -> bool:
        fields = [other.model_fields.get(name) for other in others]
        return all(
            f is not None and (f.description, f.default) == (field.description, field.default) for f in fields
        )

    return {name: field for name, field in first.model_fields.items() if is_shared(name, field)}


def choice_of(schema: type[BaseModel], field: str) -> Choice | None:
    """Return what a field may hold if its type is a `choice`."""
    found = schema.model_fields.get(field)
    return next((item for item in found.metadata if isinstance(item, Choice)), None) if found else None
