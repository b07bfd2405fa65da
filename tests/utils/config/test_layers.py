"""utils/config/layers.py: config files that build on others by `base`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from methods import METHODS
from tools.sweep import Group, expand
from trainer.config import Config, load_config
from utils.config.layers import Layer, merge_layers

TRAIN = {"batch_size": 4, "num_epochs": 1, "crop_size": 32, "lr_base": 0.01, "lr_incremental": 0.001}
LOWEST = {"task": "4-1", "data": {"name": "shapes", "num_train": 7, "num_workers": 0}, "train": TRAIN}


def write(folder: Path, name: str, fields: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(fields))
    return path


def write_pair(folder: Path, above: dict[str, Any], **below: Any) -> Path:
    """Write a base in `folder` and a file below it that builds on it; return that file's path."""
    write(folder, "lowest.yaml", LOWEST | below)
    return write(folder, "recipes/mine.yaml", {"base": "../lowest.yaml"} | above)


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises((ValueError, FileNotFoundError), match=r".") as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def test_a_file_changes_the_fields_that_it_names_and_keeps_the_rest_of_its_base(tmp_path: Path) -> None:
    evaluate = {"scales": [1.0, 2.0], "flip": True}
    path = write_pair(tmp_path, {"train": {"lr_base": 0.5}, "evaluate": {"scales": [3.0]}}, evaluate=evaluate)
    config = load_config(path)
    assert (config.train.lr_base, config.train.lr_incremental, config.train.batch_size) == (0.5, 0.001, 4)
    assert config.evaluate.scales == [3.0], "a list replaces"
    assert config.evaluate.flip
    assert config.log == "mine", "the name of the file that was asked for"


def test_bases_may_have_bases_each_relative_to_its_file(tmp_path: Path) -> None:
    write_pair(tmp_path, {"train": {"lr_base": 0.5, "batch_size": 8}})
    config = load_config(
        write(tmp_path, "a/b/top.yaml", {"base": "../../recipes/mine.yaml", "train": {"lr_base": 3}})
    )
    assert (config.train.lr_base, config.train.batch_size, config.train.crop_size) == (3, 8, 32)


def test_set_wins_over_a_file_and_its_base(tmp_path: Path) -> None:
    path = write_pair(tmp_path, {"train": {"lr_base": 0.5}})
    config = load_config(path, ["train.lr_base=9", "train.crop_size=64"])
    assert (config.train.lr_base, config.train.crop_size) == (9, 64)


def test_the_saved_config_is_the_merged_one(tmp_path: Path) -> None:
    config = load_config(write_pair(tmp_path, {"method": "plop"}))
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    assert "base" not in yaml.safe_load(saved.read_text())
    assert load_config(saved) == config


@pytest.mark.parametrize("method", ["mib", {"name": "mib"}])
def test_another_method_than_the_bases_takes_its_own_defaults_as_with_set(
    tmp_path: Path, method: object
) -> None:
    path = write_pair(tmp_path, {"method": method}, method={"name": "mbs", "output_weight": 18})
    assert load_config(path).method == METHODS["mib"].Options(name="mib")


@pytest.mark.parametrize("method", ["mbs", {"name": "mbs", "threshold": 0.5}, {"threshold": 0.5}])
def test_the_bases_own_method_keeps_the_bases_options(tmp_path: Path, method: object) -> None:
    path = write_pair(tmp_path, {"method": method}, method={"name": "mbs", "output_weight": 18})
    assert load_config(path).method.model_dump()["output_weight"] == 18


def test_options_of_the_method_that_a_base_names_alone_are_of_that_method(tmp_path: Path) -> None:
    method = load_config(write_pair(tmp_path, {"method": {"threshold": 0.5}}, method="plop")).method
    assert (method.name, method.model_dump()["threshold"]) == ("plop", 0.5)


def test_another_data_set_keeps_what_all_data_sets_have(tmp_path: Path) -> None:
    data = load_config(write_pair(tmp_path, {"data": {"name": "folder"}})).data
    assert (data.name, data.num_workers) == ("folder", 0)


values = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), values), min_size=1, max_size=4))
def test_every_field_is_that_of_the_uppermost_file_that_gives_it(files: list[dict[str, Any]]) -> None:
    def found(layers: list[dict[str, Any]]) -> dict[str, Any]:
        """Field by field, from the top."""
        fields = {
            key: [layer[key] for layer in layers if key in layer] for key in {k for x in layers for k in x}
        }
        result = {}
        for key, given_ in fields.items():
            sections = []
            for value in given_:
                if not isinstance(value, dict):
                    break
                sections.append(value)
            result[key] = found(sections) if sections else given_[0]
        return result

    layers = [Layer(Path(f"{index}.yaml"), values) for index, values in enumerate(files)]
    assert merge_layers(Config, layers) == found(files)


def test_a_base_that_is_not_there_names_both_files(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", {"base": "none.yaml"})
    assert refusal(path) == [f"{path}: base: {tmp_path / 'none.yaml'}: no such config file"]


@pytest.mark.parametrize(("content", "problem"), [("a: [1", "not valid YAML"), ("", "holds nothing")])
def test_a_base_that_is_no_config_names_both_files(tmp_path: Path, content: str, problem: str) -> None:
    path = write(tmp_path, "mine.yaml", {"base": "bad.yaml"})
    (tmp_path / "bad.yaml").write_text(content)
    (line,) = refusal(path)
    assert line.startswith(f"{path}: base: {tmp_path / 'bad.yaml'}: {problem}")


@pytest.mark.parametrize("base", [None, 3, ["a.yaml", "b.yaml"]])
def test_a_base_is_one_path(tmp_path: Path, base: object) -> None:
    path = write(tmp_path, "mine.yaml", {"base": base})
    (line,) = refusal(path)
    assert line.startswith(f"{path}: base: expected the path of one config file, found ")


def test_files_that_build_on_each_other_are_named(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", {"base": "b.yaml"})
    second = write(tmp_path, "b.yaml", {"base": "./a.yaml"})
    (line,) = refusal(first)
    assert line == f"{second}: base: leads in a circle: {first} → {second} → {first}; take one out"
    itself = write(tmp_path, "c.yaml", {"base": "c.yaml"})
    assert refusal(itself) == [f"{itself}: base: leads in a circle: {itself} → {itself}; take one out"]


def test_an_error_names_the_file_that_gave_the_field_and_the_other_one(tmp_path: Path) -> None:
    path = write_pair(
        tmp_path, {"train": {"lr_bse": 1}, "seed": -1}, method={"name": "mbs", "treshold": 1}, setting="x"
    )
    lowest = path.parent / "../lowest.yaml"
    starts = (
        f"{path} (base: {lowest}): train.lr_bse: unknown key; did you mean 'lr_base'?",
        f"{path} (base: {lowest}): seed: ",
        f"{lowest} (base of {path}): method.treshold: unknown key; did you mean 'threshold'?",
        f"{lowest} (base of {path}): setting: ",
    )
    lines = refusal(path)
    assert len(lines) == len(starts)
    for start in starts:
        assert any(line.startswith(start) for line in lines), start


def test_base_is_no_field_to_set(tmp_path: Path) -> None:
    (line,) = refusal(write_pair(tmp_path, {}), "base=other.yaml")
    assert line.startswith("--set: base: unknown key; only a config file builds on another one")


def test_a_sweep_varies_a_file_that_builds_on_another(tmp_path: Path) -> None:
    path = write_pair(tmp_path, {"train": {"lr_base": 0.5}})
    runs = expand([Group(config=str(path), name="x", methods=["mbs", "mib"])], {})
    assert [(run.config.method.name, run.config.train.lr_base) for run in runs] == [
        ("mbs", 0.5),
        ("mib", 0.5),
    ]
    assert runs[0].arguments[:2] == ["--config", str(path)]
