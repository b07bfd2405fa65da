"""Whatever a field of the config is set to, --dry-run ends with exit code 0 or 2 and never with a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from datasets import DATASETS
from methods import METHODS
from models import MODELS
from tests.faults.place import Place
from trainer.config import Config
from utils.config.section import choice_of

TABLES: dict[str, dict[str, type[BaseModel]]] = {
    "data": {"shapes": DATASETS["shapes"].options, "folder": DATASETS["folder"].options},
    "model": {"deeplabv3": MODELS["deeplabv3"].Options, "segmenter": MODELS["segmenter"].Options},
    "method": {name: method.Options for name, method in METHODS.items()},
}


def fields_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a section by its dotted name, of sections that are chosen by name those of each."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if choice_of(section, name) is not None:
            yield from (
                f"{name}.{below}" for options in TABLES[name].values() for below in options.model_fields
            )
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, f"{prefix}{name}.")
        yield f"{prefix}{name}"


FIELDS = sorted(set(fields_of(Config)))
# What would take time, not what would go wrong: a whole draw of images, a network of another size.
COSTLY = {"data.num_train", "data.num_val", "data.image_size"}
# Fetched, where there is a network.
FETCHED = {"model.pretrained", "model", "model.backbone"}

integers = st.one_of(
    st.integers(-2, 40), st.integers(-(10**40), 10**40), st.sampled_from([2**31, 2**63, 10**400])
)
floats = st.floats(allow_nan=True, allow_infinity=True)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "~", "/", ".", "..", "no", "0m", "1e400", "0x1F", "1_000", "a" * 300, "a\0b", "\ud800"]
    ),
    st.sampled_from(
        [*METHODS, *DATASETS, *MODELS, "15-1", "offline", "1-1", "sliding", "best_holdout", "adamw"]
    ),
)
plain = st.one_of(integers, floats, texts, st.booleans(), st.none())
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(texts, integers), inner, max_size=3)
    ),
    max_leaves=5,
)


def written(value: Any) -> str:
    """A value as the right side of --set."""
    if isinstance(value, str):
        return value
    try:
        return (
            yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
        )
    except (ValueError, yaml.YAMLError):  # more digits than Python writes, or half a character
        return ascii(value)[:4000]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("fuzz"), Path())
    config = yaml.safe_load(place.config().read_text())
    place.small = place.folder / "small.yaml"  # type: ignore[attr-defined]
    config["data"] |= {"num_train": 6, "num_val": 2, "image_size": 16}
    place.small.write_text(yaml.safe_dump(config))  # type: ignore[attr-defined]
    return place


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(sets=st.lists(st.tuples(st.sampled_from(FIELDS), values), min_size=1, max_size=3))
def test_any_value_of_any_field_is_taken_or_refused_in_words(
    place: Place, sets: list[tuple[str, Any]]
) -> None:
    overrides = [
        f"{field}={written(value)}"
        for field, value in sets
        if not (field in COSTLY and isinstance(value, int) and 40 < value <= 100_000)
        and not (field in FETCHED and value is not False)
    ]
    answer = place.main(*overrides, config=place.small)  # type: ignore[attr-defined]
    assert answer.startswith(("exit 0", "exit 2: ")), (overrides, answer)
    assert "[Errno" not in answer, (overrides, answer)
    assert len(answer) < 4000 or answer.startswith("exit 0"), (overrides, answer)


def test_every_field_is_tried() -> None:
    assert {"seed", "log", "train.lr_base", "data.root", "method.threshold", "evaluate.scales"} <= set(FIELDS)
    assert len(FIELDS) > 80
