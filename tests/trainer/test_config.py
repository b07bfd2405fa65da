"""trainer/config.py: methods by name, overrides, and errors that name file and field."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from methods import METHODS
from tests.support.paths import ROOT
from trainer.config import load_config
from trainer.stored_config import differing_fields, with_defaults
from utils.config.read import parse_override, read_yaml

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write_config(folder: Path, **fields: Any) -> Path:
    """Write the smallest config, with `fields` on top, and return its path."""
    train = {"batch_size": 4, "num_epochs": 1, "crop_size": 32, "lr_base": 0.01, "lr_incremental": 0.001}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"task": "4-1", "data": {"name": "shapes"}, "train": train, **fields}))
    return path


def refusal(path: Path, *overrides: str) -> list[str]:
    """Return the lines of the error that a config is refused with."""
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def test_a_method_is_its_name_or_a_mapping_with_its_fields(tmp_path: Path) -> None:
    by_name = load_config(write_config(tmp_path, method="mbs")).method
    assert by_name == METHODS["mbs"].Options(name="mbs") == load_config(write_config(tmp_path)).method
    fields = {"name": "mbs", "output_weight": 18, "selective": False}
    method = load_config(write_config(tmp_path, method=fields)).method.model_dump()
    assert method == by_name.model_dump() | fields


def test_another_method_named_by_set_takes_its_own_defaults(tmp_path: Path) -> None:
    path = write_config(tmp_path, method={"name": "mbs", "output_weight": 18})
    own = METHODS["mib"].Options(name="mib").model_dump()
    assert load_config(path, ["method=mib"]).method.model_dump() == own
    for overrides in (["method=mib", "method.output_weight=3"], ["method.output_weight=3", "method=mib"]):
        assert load_config(path, overrides).method.model_dump() == own | {"output_weight": 3.0}


@pytest.mark.parametrize("overrides", [[], ["method=mbs"], ["method.name=mbs"]])
def test_the_files_own_method_named_again_keeps_its_fields(tmp_path: Path, overrides: list[str]) -> None:
    path = write_config(tmp_path, method={"name": "mbs", "output_weight": 18})
    assert load_config(path, overrides).method.model_dump()["output_weight"] == 18


def test_a_field_of_the_files_method_is_set_where_the_file_names_it_only(tmp_path: Path) -> None:
    method = load_config(write_config(tmp_path, method="plop"), ["method.threshold=0.5"]).method
    assert (method.name, method.model_dump()["threshold"]) == ("plop", 0.5)


def test_a_field_that_the_named_method_has_not_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, method={"name": "mbs", "output_weight": 18})
    (line,) = refusal(path, "method=plop", "method.output_weight=3")
    assert line.startswith("--set: method.output_weight: unknown key; ")


def test_another_data_set_named_by_set_keeps_what_all_data_sets_have(tmp_path: Path) -> None:
    path = write_config(tmp_path, data={"name": "shapes", "num_train": 7, "num_workers": 0})
    for override in ("data.name=folder", "data=folder"):
        data = load_config(path, [override]).data
        assert (data.name, data.num_workers) == ("folder", 0)
        assert "num_train" not in type(data).model_fields


def test_a_models_section_has_its_own_fields_only(tmp_path: Path) -> None:
    path = write_config(tmp_path, model={"name": "segmenter", "output_stride": 8})
    (line,) = refusal(path)
    assert line.startswith(
        f"{path}: model.output_stride: unknown key; it is a field of model deeplabv3, not of segmenter; known here: "
    )
    without_a_name = load_config(write_config(tmp_path, model={"output_stride": 8})).model
    assert (without_a_name.name, without_a_name.model_dump()["output_stride"]) == ("deeplabv3", 8)


@pytest.mark.parametrize(
    ("method", "section", "field", "value"),
    [("joint", "data", "train_on", "seen"), ("ssul", "train", "freeze_extractor", True)],
)
def test_a_method_sets_other_fields_where_neither_file_nor_set_does(
    tmp_path: Path, method: str, section: str, field: str, value: object
) -> None:
    def found(path: Path, *overrides: str) -> object:
        return load_config(path, overrides).model_dump()[section][field]

    path = write_config(tmp_path)
    assert found(path, f"method={method}") == value
    default = found(path)
    assert default != value
    assert found(path, f"method={method}", f"{section}.{field}={default}") == default


def test_set_reads_values_as_yaml_and_numbers_as_written(tmp_path: Path) -> None:
    overrides = [
        "train.lr_base=1e-5",  # a string to YAML
        "task=[[ring, disc], [star]]",
        "train.amp=off",  # false to YAML
        "train.clip_grad_norm=null",
        "method.orthogonal_weight=2",
        "model.pretrained=weights.pth",
    ]
    config = load_config(write_config(tmp_path, method={"threshold": 0.5}), overrides)
    assert config.train.lr_base == 1e-5
    assert config.task == [["ring", "disc"], ["star"]]
    assert config.train.amp == "off"
    assert config.train.clip_grad_norm is None
    method = config.method.model_dump()
    assert method["orthogonal_weight"] == 2.0
    assert method["threshold"] == 0.5, "the rest of the file's section stays"
    assert config.model.pretrained == "weights.pth"


def test_set_makes_sections_that_the_file_leaves_out_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    config = load_config(path, ["data.num_train=7", "seed=1", "seed=2"], log="a_name")
    assert config.data.model_dump()["num_train"] == 7
    assert config.seed == 2
    assert config.log == "a_name"
    assert config.run_dir == Path("runs/a_name")


def test_set_fills_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    path = write_config(tmp_path, evaluate=None)
    path.write_text(path.read_text().replace("evaluate: null", "evaluate:"))
    assert load_config(path, ["evaluate.flip=true"]).evaluate.flip


def test_a_value_may_hold_an_equals_sign() -> None:
    assert parse_override("data.root=a=b") == ("data.root", "a=b")


@pytest.mark.parametrize("override", ["seed", "=3", "seed=[1"])
def test_a_malformed_override_is_refused_with_its_text(tmp_path: Path, override: str) -> None:
    assert f"--set {override}" in refusal(write_config(tmp_path), override)[0]


def test_set_below_a_field_that_is_no_section_is_refused(tmp_path: Path) -> None:
    assert refusal(write_config(tmp_path), "data.name.x=1") == ["--set data.name.x: 'name' is not a section"]


def test_a_task_that_yaml_reads_as_a_number_is_refused_with_a_hint(tmp_path: Path) -> None:
    (line,) = refusal(write_config(tmp_path), "task=15_1")
    assert line.startswith("--set: task: ")
    assert "151" in line
    assert "'15-1'" in line


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    path = write_config(tmp_path, memry={"x": 1}, method={"orthogonal_wieght": 2}, zzz=1)
    lines = refusal(path, "train.btch_size=8", "evalute.mode=whole")
    assert f"{path}: memry: unknown key; did you mean 'memory'?" in lines
    assert f"{path}: method.orthogonal_wieght: unknown key; did you mean 'orthogonal_weight'?" in lines
    assert "--set: train.btch_size: unknown key; did you mean 'batch_size'?" in lines
    assert "--set: evalute: unknown key; did you mean 'evaluate'?" in lines
    assert any(line.startswith(f"{path}: zzz: unknown key; known here: task, ") for line in lines)


def test_all_errors_come_at_once_with_source_and_field(tmp_path: Path) -> None:
    path = write_config(tmp_path, setting="overlapping", model={"output_stride": 12}, train={"batch_size": 0})
    lines = refusal(path, "seed=-1", "method=mbx", "no_equals")
    starts = [
        "--set no_equals: expected key.sub=value",
        f"{path}: setting: ",
        f"{path}: model.output_stride: ",
        f"{path}: train.batch_size: ",
        f"{path}: train.num_epochs: missing",
        f"{path}: train.lr_base: missing",
        "--set: seed: ",
        "--set: method.name: there is no 'mbx'; ",
    ]
    for start in starts:
        assert len([line for line in lines if line.startswith(start)]) == 1, start
    assert [line for line in lines if "found 'overlapping'" in line and "'disjoint'" in line]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("task=[disc, ring]", "task.0"),
        ("task=null", "task"),
        ("model.pretrained=3", "model.pretrained"),
        ("class_order=[0, a]", "class_order.1"),
        ("data=3", "data"),
        ("train.num_epochs=1.5", "train.num_epochs"),
        ("train.lr_base=.inf", "train.lr_base"),
        ("train.momentum=1", "train.momentum"),
        ("method.threshold=70", "method.threshold"),
        ("method=3", "method"),
        ("model=x", "model.name"),
        ("evaluate.mode=crop", "evaluate.mode"),
        ("evaluate.stride=0", "evaluate.stride"),
        ("evaluate.scales=[]", "evaluate.scales"),
        ("evaluate.scales=[1, 0]", "evaluate.scales.1"),
        ("log=a/b", "log"),
        ("log=..", "log"),
    ],
)
def test_a_value_out_of_range_or_of_the_wrong_type_names_its_field(
    tmp_path: Path, override: str, field: str
) -> None:
    assert any(line.startswith(f"--set: {field}: ") for line in refusal(write_config(tmp_path), override))


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["train.min_scale=3"], ["train.min_scale: 3.0", "train.max_scale 2.0"]),
        (["train.nesterov=true", "train.momentum=0"], ["train.nesterov", "train.momentum"]),
        (["train.nesterov=true", "train.optimizer=adamw"], ["train.nesterov", "train.optimizer"]),
        (
            ["evaluate.mode=sliding", "train.crop_size=96", "evaluate.stride=97"],
            ["evaluate.stride: 97", "train.crop_size 96", "left out"],
        ),
        (["evaluate.mode=whole", "evaluate.stride=8"], ["evaluate.stride", "evaluate.mode sliding", "whole"]),
        (["evaluate.short_side=own"], ["evaluate.short_side: found own", "center_crop", "whole or sliding"]),
        (["task=[[disc], [ring]]", "class_order=[0, 2, 1]"], ["class_order", "named task"]),
        (
            [
                *("data=cityscapes", "task=domains_11-5", "method=finetune"),
                "checkpoint=best_validation_new",
            ],
            ["checkpoint: best_validation_new", "new classes", "domains_11-5"],
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused_by_name(
    tmp_path: Path, overrides: list[str], fields: list[str]
) -> None:
    (line,) = refusal(write_config(tmp_path), *overrides)
    assert all(field in line for field in fields)


@pytest.mark.parametrize(
    ("override", "stride"),
    [("evaluate.stride=96", 96), ("evaluate.stride=1", 1), ("evaluate.stride=null", 64)],
)
def test_windows_lie_two_thirds_of_a_crop_apart_or_as_the_stride_says(
    tmp_path: Path, override: str, stride: int
) -> None:
    fields = ["train.crop_size=96", "evaluate.mode=sliding", override]
    assert load_config(write_config(tmp_path), fields).evaluate.window_stride(96) == stride


def test_a_file_that_is_missing_broken_or_no_mapping_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such config"):
        read_yaml(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    for content, problem in (
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\xff", "not valid YAML"),
        (b"", "mapping"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"bad\.yaml: .*{problem}"):
            read_yaml(path)


def test_a_config_is_frozen(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    for section, field in ((config, "seed"), (config.train, "lr_base"), (config.method, "output_weight")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, 1)


@pytest.mark.parametrize("task", ["4-1", [["ring", "disc"], ["star"]]])
def test_to_yaml_round_trips(tmp_path: Path, task: object) -> None:
    overrides = ["train.lr_base=1e-5", "method.orthogonal=false", "data.root=/some/where"]
    config = load_config(write_config(tmp_path, task=task), overrides, log="über")
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


def test_differing_fields_leaves_out_what_cannot_change_a_result(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    ours = load_config(path, log="a").model_dump(mode="json")
    free = ["data.num_workers=0", "logging.every=3", "logging.num_panels=0", "output_dir=elsewhere"]
    assert differing_fields(ours, load_config(path, free, log="b").model_dump(mode="json")) == []


def test_differing_fields_names_the_others_and_both_values(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    ours = load_config(path).model_dump(mode="json")
    theirs = load_config(path, ["train.lr_base=0.5", "task=3-1"]).model_dump(mode="json")
    del theirs["train"]["clip_grad_norm"]
    theirs["train"]["optimiser"] = "sgd"
    assert differing_fields(ours, theirs) == [
        "task: 3-1 → 4-1",
        "train.lr_base: 0.5 → 0.01",
        "train.optimiser: sgd → None",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_loads_and_starts_with_command_hardware_time_and_score(path: Path) -> None:
    load_config(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    for what in ("Command:", "Hardware:", "Time:", "Score:"):
        assert what in header
    assert f"main.py --config ./{path.relative_to(ROOT)} --log " in header


RECIPES = {
    "voc_segmenter": (32, 16, 1e-3, 1e-4, 1, "constant", True, 1e-5, 512, 25),
    "ade20k_segmenter": (64, 8, 1e-3, 5e-4, 1, "constant", True, 1e-5, 512, 50),
    "voc": (60, 32, 1e-3, 1e-4, 10, "poly", True, 1e-4, 512, 25),
    "ade20k": (100, 24, 2.5e-3, 2.5e-4, 10, "poly", True, 1e-4, 512, 50),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_those_of_the_paper(name: str) -> None:
    config = load_config(CONFIGS[0].parent / f"{name}.yaml")
    train, method = config.train, config.method.model_dump()
    recipe = (train.num_epochs, train.batch_size, train.lr_base, train.lr_incremental, train.lr_head_factor)
    rest = (train.schedule, train.nesterov, train.weight_decay, train.crop_size)
    assert (*recipe, *rest, method["output_weight"]) == RECIPES[name]
    assert (train.optimizer, train.momentum, train.num_epochs_incremental) == ("sgd", 0.9, None)
    assert (train.min_scale, train.max_scale) == (0.5, 2.0)
    assert method["threshold"] == 0.7
    if config.model.name == "segmenter":
        model = config.model.model_dump()
        decoder = [model[name] for name in ("backbone", "num_blocks", "channels", "num_heads")]
        assert decoder == ["vit_base_patch16_384", 2, 768, 12]


def test_the_recipe_of_the_authors_differs_by_what_its_header_lists_only() -> None:
    ours, theirs = (
        load_config(CONFIGS[0].parent / f"{name}.yaml").model_dump(mode="json")
        for name in ("voc_segmenter", "voc_segmenter_authors")
    )
    assert differing_fields(ours, theirs) == [
        "checkpoint: best_validation_new → last",
        "model.normalisation: imagenet → backbone",
        "train.amp: fp16 → bf16",
        "train.pad_image: black → mean",
        "train.pad_label: background → ignore",
    ]


def test_the_shipped_configs_are_there() -> None:
    shipped = {"voc", "ade20k", "voc_segmenter", "voc_segmenter_authors", "ade20k_segmenter"}
    shipped |= {"demo", "demo_segmenter", "voc_animals", "cityscapes", "folder"}
    shipped |= {"voc_swin_base", "voc_vit_base_dinov3"}
    assert {f"{name}.yaml" for name in shipped} <= {path.name for path in CONFIGS}


def test_a_stored_config_takes_the_defaults_of_younger_fields(tmp_path: Path) -> None:
    stored = load_config(write_config(tmp_path)).model_dump(mode="json")
    older = {**stored, "train": {k: v for k, v in stored["train"].items() if k != "pad_label"}}
    del older["checkpoint"]
    assert with_defaults(older) == stored
    unreadable = {**stored, "model": {"name": "hourglass"}}
    assert with_defaults(unreadable) == unreadable
