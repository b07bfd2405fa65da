"""Config files that build on others: `base: OTHER.yaml` names the file whose fields this one changes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from utils.config.fields import merge
from utils.config.read import choose, read_yaml, show
from utils.config.section import choice_of
from utils.config.values import check_path
from utils.errors import explain


class Layer(NamedTuple):
    """A config file and the fields that stand in it, without `base`."""

    path: Path
    values: dict[str, Any]


def read_layers(path: Path) -> list[Layer]:
    """Return a config file, the file it builds on, the file that builds on, and so on.

    Raises FileNotFoundError or ValueError naming the file; of a base both files.
    """
    layers = [Layer(path, read_yaml(path))]
    while (base := layers[-1].values.pop("base", _NO_BASE)) is not _NO_BASE:
        below = _find_base(layers[-1].path, base)
        known = [layer.path.resolve() for layer in layers]
        if below.resolve() in known:
            circle = [*(str(layer.path) for layer in layers[known.index(below.resolve()) :]), str(below)]
            raise ValueError(
                f"{layers[-1].path}: base: leads in a circle: {' → '.join(circle)}; take one out"
            )
        try:
            layers.append(Layer(below, read_yaml(below)))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{layers[-1].path}: base: {error}") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{layers[-1].path}: base: {explain(error)}") from error
    return layers


_NO_BASE = object()


def _find_base(path: Path, base: object) -> Path:
    """Return the file that `base` of a config file names, relative to that file."""
    if not isinstance(base, str):
        raise ValueError(f"{path}: base: expected the path of one config file, found {show(base)}")
    try:
        return path.parent / check_path(Path(base))
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}, found {show(base)}") from error


def merge_layers(schema: type[BaseModel], layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the fields of a file over those of its bases: sections merge key by key, lists and scalars replace.

    Where a section is chosen by name, the name acts as `--set` of it does (`utils.config.read.apply_overrides`).
    """
    *above, lowest = layers
    values = lowest.values
    for layer in reversed(above):
        values, over = _with_names(schema, values), _with_names(schema, layer.values)
        for field, section in over.items():
            if (
                choice_of(schema, field)
                and isinstance(section, dict)
                and isinstance(section.get("name"), str)
            ):
                choose(schema, values, field, section["name"])
        values = merge(values, over)
    return values


def _with_names(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with `method: NAME` written out as `method: {name: NAME}`."""
    return {
        field: {"name": value} if isinstance(value, str) and choice_of(schema, field) else value
        for field, value in values.items()
    }


def source_of(layers: Sequence[Layer], field: str) -> str:
    """Return which of the files gave a field, by its dotted name, for an error about it; of a base both files."""
    asked = layers[0].path
    giving = next((layer.path for layer in layers if _gives(layer.values, field)), asked)
    if len(layers) == 1:
        return str(asked)
    return f"{giving} (base of {asked})" if giving != asked else f"{asked} (base: {layers[1].path})"


def _gives(values: Mapping[str, Any], field: str) -> bool:
    """Whether values hold a field, by its dotted name, or a text or list in place of one of its sections."""
    for name in field.split("."):
        if not isinstance(values, Mapping):
            return True
        if name not in values:
            return False
        values = values[name]
    return True
