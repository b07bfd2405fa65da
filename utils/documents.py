"""YAML and JSON from disk, read without running code and within limits, whoever wrote them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from utils.files import require_regular
from utils.units import format_size

MAX_YAML_BYTES = 256 * 1024
"""A config of a few hundred classes has a tenth of it; PyYAML takes seconds for more."""
MAX_JSON_BYTES = 64 * 2**20
MAX_DEPTH = 32
MAX_ITEMS = 100_000
"""Of a YAML file once its aliases are written out: nine lines of them can stand for a billion items."""


class DocumentError(ValueError):
    """A document is no YAML or JSON, or exceeds a limit."""


def load_yaml(path: Path) -> Any:
    """Return what a YAML file holds; raises OSError or ValueError naming the file, also where a key stands twice."""
    try:
        return parse_yaml(_read_text(path, MAX_YAML_BYTES))
    except (DocumentError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error


def load_json(path: Path) -> Any:
    """Return what a JSON file holds; raises OSError or ValueError naming the file."""
    try:
        return parse_json(_read_text(path, MAX_JSON_BYTES))
    except (DocumentError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML holds; raises DocumentError, also where a key stands twice."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, 0, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise DocumentError(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise DocumentError(" ".join(str(error).split())) from error
    except (ValueError, OverflowError) as error:  # what looks like a date or a number and is none
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"a value cannot be read ({error}); put it in quotes") from error
    finally:
        if loader is not None:
            loader.dispose()


def parse_json(text: str | bytes) -> Any:
    """Return what a text in JSON holds; raises DocumentError, also for NaN and infinities."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise DocumentError(_too_deep()) from error
    except ValueError as error:
        raise DocumentError(str(error)) from error
    level, depth = [value], 0
    # What json makes has these types and no subclass of theirs, which isinstance would look for.
    while level := [item for item in level if type(item) in (dict, list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise DocumentError(_too_deep())
        level = [x for item in level for x in (item.values() if isinstance(item, dict) else item)]
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON; write null or a finite number")


def _read_text(path: Path, max_bytes: int) -> str:
    require_regular(path)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DocumentError(
            f"larger than {format_size(max_bytes)}, which nothing that belongs here is; give the right file"
        )
    return content.decode("utf-8-sig")


def _too_deep() -> str:
    return f"nested more than {MAX_DEPTH} deep; make it flatter"


def _measure(node: yaml.Node, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return items and height of a node with its aliases written out; raises DocumentError beyond the limits."""
    size, height = known.get(id(node), (0, 0))
    if size < 0:
        raise DocumentError("an alias stands in what it names; write it out")
    if size == 0:
        known[id(node)] = -1, 0
        size = 1
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        below = [item for pair in pairs for item in pair]
        below += node.value if isinstance(node, yaml.SequenceNode) else []
        for item in below:
            more, taller = _measure(item, depth + 1, known)
            size, height = size + more, max(height, taller + 1)
        known[id(node)] = size, height
    if depth + height > MAX_DEPTH:
        raise DocumentError(_too_deep())
    if size > MAX_ITEMS:
        raise DocumentError(f"more than {MAX_ITEMS:,} items once its aliases are written out; write fewer")
    return size, height


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would take the last, and deep nesting."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise DocumentError(_too_deep())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(twice)}: given twice, keep one", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)
