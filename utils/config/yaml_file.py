"""YAML as people write it by hand: read without running code, a key that stands twice refused."""

from pathlib import Path
from typing import Any

import yaml


def load_yaml(path: Path) -> Any:
    """Return what a YAML file holds; raises ValueError naming the file, also where a key stands twice."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML holds; raises yaml.YAMLError, also where a key stands twice."""
    return _UniqueKeyLoader(text).get_single_data()


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(twice)}: given twice, keep one", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)
