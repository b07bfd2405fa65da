"""Wrong configs: one message with everything that can be known without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datasets import voc
from tests.support.cli import call_main, set_fields, write_tiny_config
from trainer.checks import check_config
from trainer.config import load_config
from utils.distributed import Worker, find_worker

TRAIN = {"batch_size": 4, "num_epochs": 1, "crop_size": 32, "lr_base": 0.01, "lr_incremental": 0.001}


def write_config(folder: Path, **fields: Any) -> Path:
    """Write the smallest config, with `fields` on top, and return its path."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"task": "4-1", "data": {"name": "shapes"}, "train": TRAIN, **fields}))
    return path


def refusal(path: Path, *overrides: str, ranks: int = 1, device: str = "cpu") -> list[str]:
    """Return the lines of the error that a config is refused with on some machine."""
    worker = Worker(torch.device(device), world_size=ranks)
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path, overrides, check=lambda config: check_config(config, worker))
    assert type(caught.value) is ValueError
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "field",
    [
        "seed",
        "data.num_workers",
        "train.batch_size",
        "train.num_epochs_incremental",
        "train.lr_base",
        "train.clip_grad_norm",
        "train.weight_decay",
        "method.output_weight",
        "logging.every",
    ],
)
@pytest.mark.parametrize("value", ["true", "false"])
def test_true_and_false_are_no_numbers(tmp_path: Path, field: str, value: str) -> None:
    (line,) = refusal(write_config(tmp_path), f"{field}={value}")
    assert line == f"--set: {field}: expected a number, not true or false, found {value}"


@pytest.mark.parametrize(
    "field", ["train.nesterov", "train.compile", "method.orthogonal", "model.pretrained"]
)
@pytest.mark.parametrize("value", ["0", "1", "1.0"])
def test_numbers_are_no_switches(tmp_path: Path, field: str, value: str) -> None:
    (line,) = refusal(write_config(tmp_path), f"{field}={value}")
    assert line.startswith(f"--set: {field}: expected true or false")
    assert line.endswith(f"found {value}")


def test_true_is_no_class_id(tmp_path: Path) -> None:
    assert any("class_order.1: " in line for line in refusal(write_config(tmp_path), "class_order=[0, true]"))


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("method.output_weight=-1", "greater than or equal to 0"),
        ("method.pseudo_label_weight=-0.5", "greater than or equal to 0"),
        ("train.crop_size=0", "greater than or equal to 1"),
        ("train.num_epochs=0", "greater than or equal to 1"),
        ("train.lr_base=0", "greater than 0"),
        ("train.lr_incremental=.nan", "finite"),
        ("data.max_skipped=1.5", "less than or equal to 1"),
        ("data.on_error=ignore", "'raise' or 'skip'"),
    ],
)
def test_a_number_out_of_range_names_field_value_and_range(
    tmp_path: Path, override: str, allowed: str
) -> None:
    (line,) = refusal(write_config(tmp_path), override)
    field, value = override.split("=")
    assert line.startswith(f"--set: {field}: ")
    assert allowed in line
    assert line.rstrip("'").endswith(value.strip("."))


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("[]", ["list of steps is empty"]),
        ("[[disc], []]", ["step 1 is empty"]),
        ("[[background, disc]]", ["step 0 lists 'background', which is part of every task"]),
        ("[[disc], [ring, disc]]", ["class 'disc' is listed twice, in step 0 and in step 1"]),
        ("[[disc, disc]]", ["class 'disc' is listed twice, in step 0 and in step 0"]),
        (
            "[[disc], [], [dsc, background], [disc]]",
            [
                "step 1 is empty",
                "unknown class 'dsc'; did you mean 'disc'",
                "lists 'background'",
                "'disc' is listed",
            ],
        ),
        ("'0-1'", ["step of 0 classes"]),
        ("'7-1'", ["starts with 7 classes, but the data set has 6"]),
        ("''", ["'' is not a task name"]),
        (
            "[[disc], [ring], [star], [cross], [diamond], [triangle], [sun]]",
            ["step 6 lists the unknown class 'sun'"],
        ),
    ],
)
def test_every_problem_of_a_task_is_told_before_data_are_opened(
    tmp_path: Path, task: str, told: list[str]
) -> None:
    lines = refusal(write_config(tmp_path), f"task={task}")
    assert len(lines) == len(told)
    assert all(line.startswith("task: ") and text in line for line, text in zip(lines, told, strict=True))


def test_the_classes_of_a_folder_are_unknown_before_its_files_are_read(tmp_path: Path) -> None:
    path = write_config(tmp_path, task=[["anything"]], data={"name": "folder"})
    assert load_config(path, check=lambda config: check_config(config, find_worker("cpu"))).task == [
        ["anything"]
    ]


def test_weights_and_biases_that_is_not_installed_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(write_config(tmp_path), "logging.wandb=project") == [
        "logging.wandb: 'project' needs the package wandb, which is not installed; pip install wandb, or set it to null"
    ]


def test_a_class_order_that_no_data_set_publishes_is_told(tmp_path: Path) -> None:
    (line,) = refusal(write_config(tmp_path), "class_order=15-1_z", "data.name=voc", "task=15-1")
    assert "class_order: no published order '15-1_z'" in line
    (line,) = refusal(
        write_config(tmp_path), f"class_order={[0, *range(2, len(voc.CLASSES))]}", "data.name=voc"
    )
    assert line.startswith("class_order: missing [1]; expected every id from 0 to 20 exactly once")


def test_types_contradictions_classes_and_machine_are_told_together(tmp_path: Path) -> None:
    path = write_config(tmp_path, task=[["disc"], ["disc", "background"]], optimiser="sgd")
    overrides = ["train.min_scale=3", "train.nesterov=true", "train.momentum=0", "train.amp=fp16"]
    lines = refusal(
        path, *overrides, "class_order=[0, 1]", "seed=true", "no_equals", "train.accumulate=3", ranks=2
    )
    starts = [
        "--set no_equals: expected key.sub=value",
        "--set: seed: expected a number",
        f"{path}: optimiser: unknown key",
        "train.min_scale: 3.0 exceeds train.max_scale 2.0",
        "train.nesterov: needs",
        "class_order: goes with a named task",
        "train.batch_size: 4 is no multiple of 2 ranks × 3 accumulated",
        "train.amp: fp16 needs a GPU",
    ]
    for start in starts:
        assert len([line for line in lines if line.startswith(start)]) == 1, start
    assert len(lines) == len(starts)


def test_a_gpu_takes_fp16_and_one_image_a_rank_where_batch_norm_is_synchronised(tmp_path: Path) -> None:
    worker = Worker(torch.device("cuda"), world_size=4)
    config = load_config(
        write_config(tmp_path), ["train.amp=fp16"], check=lambda config: check_config(config, worker)
    )
    assert config.train.amp == "fp16"


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        # What is judged by a field that is wrong itself is not judged.
        (["train.batch_size=abc", "train.accumulate=3"], ["train.batch_size"]),
        (["train.accumulate=0", "train.batch_size=3"], ["train.accumulate"]),
        (["train.max_scale=x", "train.min_scale=9"], ["train.max_scale"]),
        (["data.name=vocc", "task=[[cat], [cat]]"], ["data.name"]),
        (["data=vocc", "task=[[cat], [cat]]"], ["data.name"]),
        (["task=[[cat, 3], [cat]]", "class_order=[0, 1, 2, 4, 3, 5, 6]"], ["task.0.1"]),
    ],
)
def test_no_problem_is_made_up_from_a_field_that_is_wrong(
    tmp_path: Path, overrides: list[str], fields: list[str]
) -> None:
    lines = refusal(write_config(tmp_path), *overrides, ranks=2)
    told = {line.split(": ")[1] for line in lines if line.startswith("--set: ")}
    assert [line for line in lines if not line.startswith("--set: ")] == []
    assert {field for field in told if field != "task"} <= set(fields)
    assert told


def test_a_missing_section_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("task: [[disc], [disc]]\nclass_order: [0]\ntrue: 1\n3: 4\n")
    lines = refusal(path)
    for start in (f"{path}: data: missing", f"{path}: train: missing", "class_order: goes with a named task"):
        assert len([line for line in lines if line.startswith(start)]) == 1, start


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    path.write_text(path.read_text() + "seed: 1\nlogging: {every: 3}\nseed: 2\n")
    with pytest.raises(
        ValueError, match=r"small\.yaml: not valid YAML: line 1, column 1: seed: given twice, keep one"
    ):
        load_config(path)


def test_the_command_line_tells_everything_at_once_and_exits_with_2(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    overrides = set_fields(
        "train.accumulate=3", "train.amp=fp16", "task=[[ring], [ring]]", "train.lr_base=true"
    )
    process = call_main("--config", config, "--log", "wrong", *overrides)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.splitlines() == [
        "error: --set: train.lr_base: expected a number, not true or false, found true",
        "train.batch_size: 4 is no multiple of 1 ranks × 3 accumulated micro-batches (train.accumulate)",
        "train.amp: fp16 needs a GPU; use bf16 or off on a CPU",
        "task: class 'ring' is listed twice, in step 0 and in step 1; list every class once",
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "plop",
            "method.name: plop compares the stages of a convolutional backbone, which model.name segmenter has",
        ),
        ("dkd", "method.name: dkd is about the rows of a 1x1 classifier, which model.name segmenter has not"),
    ],
)
def test_a_method_is_refused_with_a_model_that_lacks_what_it_is_about(
    method: str, message: str, tmp_path: Path
) -> None:
    (line,) = refusal(write_config(tmp_path), f"method={method}", "model=segmenter")
    assert message in line


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "loss.output_distillation.weight=18",
            "--set: loss: unknown key; a loss is set by fields of its method now",
        ),
        ("data.shapes.num_train=3", "--set: data.shapes: unknown key; its fields stand in data itself now"),
        (
            "model.auxiliary_classifier=true",
            "--set: model.auxiliary_classifier: unknown key; leave it out: method dkd",
        ),
        (
            "method.stage_weight=3",
            "--set: method.stage_weight: unknown key; it is a field of method plop",
        ),
        ("evaluate.scales=[true]", "--set: evaluate.scales: expected a list without true or false"),
        (
            "method.output_weight={a: 1}",
            "--set: method.output_weight: Input should be a valid number, found {'a': 1}",
        ),
        ("train=null", "--set: train: expected a mapping of fields, found nothing"),
        (
            "init_from=''",
            "--set: init_from: expected a path, an address or a name, found nothing; leave it out",
        ),
        ("init_from=3", "--set: init_from: expected a path, an address or a name, found 3"),
        ("class_order=3", "--set: class_order: Input should be a valid string or a valid list, found 3"),
        (".method=3", "--set .method=3: expected key.sub=value"),
        (
            "method={name: plop, name: mbs}",
            "--set method={name: plop, name: mbs}: the value is not valid YAML: line 1, column 1: name: given twice",
        ),
    ],
)
def test_a_wrong_field_is_told_once_with_what_to_write_instead(
    tmp_path: Path, override: str, told: str
) -> None:
    text = "\n".join(refusal(write_config(tmp_path), override))
    assert text.startswith(told)
    assert text.count("--set") == told.count("--set")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["method={name: mbs}", "method.name=plop"],
            "--set method: given as plop and as {'name': 'mbs'}; keep one",
        ),
        (
            ["method.threshold=0.3", "method={name: plop}"],
            "--set method.threshold: undone by the later --set method",
        ),
    ],
)
def test_a_set_that_another_one_would_undo_is_refused(
    tmp_path: Path, overrides: list[str], told: str
) -> None:
    (line,) = refusal(write_config(tmp_path), *overrides)
    assert line.startswith(told)


def test_of_two_values_of_a_field_the_last_counts(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["seed=1", "method=mbs", "seed=2", "method=plop"])
    assert (config.seed, config.method.name) == (2, "plop")
