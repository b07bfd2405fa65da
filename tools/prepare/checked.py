"""Files of other tools, read into a checked form: values of the type that they must have, names and colours."""

import json
import posixpath
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from utils.errors import DataError
from utils.images import Colour

MAX_DEPTH = 100
"""Levels of lists and objects in a JSON file; the formats need eight."""


class Checked(BaseModel):
    """Fields of another tool's file that are read: of the type that is written here, numbers finite."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


Model = TypeVar("Model", bound=Checked)


def load_json(file: Path) -> Any:
    """What a JSON file holds; raises DataError or OSError naming it."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise DataError(f"{file}: {_TOO_DEEP}") from error
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level if isinstance(value, list | dict) for inner in _items(value)]
        if not level:
            return content
    raise DataError(f"{file}: {_TOO_DEEP}")


_TOO_DEEP = f"its values are nested more than {MAX_DEPTH} levels deep; no annotation tool writes that: replace the file"


def _items(value: list[Any] | dict[str, Any]) -> Iterator[Any]:
    """The lists and objects in one."""
    return (
        item for item in (value.values() if isinstance(value, dict) else value) if type(item) in (list, dict)
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = repeated(key for key, _ in pairs)
        raise ValueError(f"an object holds {brief(twice[0])} twice; which one counts is not said")
    return found


def check(model: type[Model], value: Any, where: str, problems: list[str]) -> Model | None:
    """The fields of `value`; what is wrong with it is added to `problems`, a line a field, and then there are none."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems += [f"{where}: {line}" for line in _describe(error)]
        return None


def _describe(error: ValidationError) -> Iterator[str]:
    for found in error.errors(include_url=False, include_context=False):
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]).lstrip(
            "."
        )
        allowed = found["msg"].removeprefix("Value error, ").replace("Input should be", "allowed is")
        if found["type"] == "missing":
            yield f"{field}: is missing"
        else:
            yield f"{field + ': ' if field else ''}found {brief(found['input'])}; {allowed}"


def brief(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    return _brief.repr(value)


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60
_brief.maxlevel = 3


def repeated(values: Iterable[Any]) -> list[Any]:
    """Those that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def clean_name(name: str) -> str:
    """A label as a list of classes can hold it: one line, printable, without spaces around.

    Characters that only look the same become the same (NFC). Raises ValueError.
    """
    cleaned = unicodedata.normalize("NFC", name).strip()
    if not cleaned:
        raise ValueError("a name must not be empty")
    check_printable(cleaned, "a name")
    return cleaned


def check_printable(text: str, what: str) -> None:
    """Raise ValueError for a text with line breaks or characters that nobody sees."""
    # Joiners are letters of Persian and Indic scripts, and parts of emojis.
    wrong = [c for c in text if unicodedata.category(c) in _UNPRINTABLE and c not in "\u200c\u200d"]
    if wrong:
        raise ValueError(f"{what} must be one line of printable characters, without {wrong[0]!r}")


_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean_path(name: str) -> str:
    """A file's name with '/' between folders, '..' worked out; raises ValueError where it can be no file."""
    check_printable(name, "a file name")
    path = posixpath.normpath(name.replace("\\", "/"))
    if not name or path == "." or name.endswith(("/", "\\")):
        raise ValueError("a file name must name a file")
    return path


def _read_colour(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return (*bytes.fromhex(value[1:]),)
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return (*value,)
    raise ValueError("allowed are three numbers from 0 to 255 and '#rrggbb'; correct or remove it")


Name = Annotated[str, AfterValidator(clean_name)]
FileName = Annotated[str, AfterValidator(clean_path)]
ColourValue = Annotated[Colour, BeforeValidator(_read_colour)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
