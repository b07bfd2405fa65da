"""tools/record.py: a run's line says all that its folder says to tools/summarize.py, and wrong lines are named."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main as main_program
from tests.support.paths import ROOT
from tests.support.results import make_results
from tools.record import main as record
from tools.summarize import main as summarize
from trainer.config import load_config

DEMO = ROOT / "configs" / "demo.yaml"


def write_run(folder: Path, name: str, *overrides: str, iou: float = 0.5, num_steps: int = 2) -> Path:
    """Write config and results of a run of the demo's recipe whose task is to learn two classes, then one."""
    config = load_config(DEMO, [*overrides, f"output_dir={folder}"], log=name)
    history = [np.array([0.9, iou, np.nan]), np.array([0.8, iou / 3, 0.4, 0.1])][:num_steps]
    method = config.model_dump(mode="json")["method"]
    results = make_results(
        ["background", "disc", "ring", "square"],
        history,
        dataset="shapes",
        setting=config.setting,
        method=method["name"] if isinstance(method, dict) else method,
        seed=config.seed,
    )
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of a method, one with another learning rate, and a variant of another method."""
    folder = tmp_path / "runs"
    return [
        write_run(folder, "mbs_0", iou=0.6),
        write_run(folder, "mbs_1", "seed=1", "train.lr_incremental=2.0e-5", iou=0.7),
        write_run(folder, "tuned_0", "method=finetune", "variant=fine, tuned | long", "setting=disjoint"),
    ]


def record_all(runs: list[Path], table: Path, *options: str) -> list[dict[str, Any]]:
    """Record the runs and return the table's lines."""
    arguments = [*map(str, runs), "--base", str(DEMO), "--to", str(table), *options]
    assert record(arguments) == 0
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("form", ["md", "csv", "latex"])
@pytest.mark.parametrize("group_by", ["method,setting", "variant", "log,train.lr_incremental"])
def test_a_table_summarizes_to_the_bytes_of_its_folders(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], group_by: str, form: str
) -> None:
    record_all(runs, tmp_path / "table.jsonl")
    capsys.readouterr()
    options = ["--group-by", group_by, "--format", form]
    summarize([*map(str, runs), *options])
    expected = capsys.readouterr()
    summarize([str(tmp_path / "table.jsonl"), *options])
    assert capsys.readouterr() == expected
    assert expected.out.count("\n") > len(runs) - 1
    assert ("mixes runs that differ in train.lr_incremental" in expected.out + expected.err) == (
        not group_by.startswith("log")
    )


def test_a_table_and_folders_of_runs_are_read_side_by_side(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize([*map(str, runs), "--group-by", "method", "--format", "csv"])
    expected = capsys.readouterr().out
    record_all(runs[1:], tmp_path / "table.jsonl")
    capsys.readouterr()
    summarize([str(runs[0]), str(tmp_path / "table.jsonl"), "--group-by", "method", "--format", "csv"])
    assert capsys.readouterr().out == expected


def test_a_line_holds_what_differs_from_the_recipe_and_every_score(runs: list[Path], tmp_path: Path) -> None:
    first, second, third = record_all(runs, tmp_path / "table.jsonl", "--note", "beside other work")
    assert [line["name"] for line in (first, second, third)] == ["mbs_0", "mbs_1", "tuned_0"]
    assert first["base"] == "configs/demo.yaml"
    assert first["changes"] == {}
    assert second["changes"] == {"seed": 1, "train.lr_incremental": 2e-5}
    assert third["changes"] == {
        "method": "finetune",
        "variant": "fine, tuned | long",
        "setting": "disjoint",
    }
    assert (third["method"], third["variant"], first["variant"]) == ("finetune", "fine, tuned | long", "mbs")
    assert first["seconds"] == 24.6
    assert first["note"] == "beside other work"
    results = json.loads((runs[0] / "results.json").read_text(encoding="utf-8"))
    for step in results["steps"]:
        del step["groups"]
    assert {key: first[key] for key in results} == results


def test_the_command_of_a_line_makes_the_config_of_its_run(runs: list[Path], tmp_path: Path) -> None:
    for run, line in zip(runs, record_all(runs, tmp_path / "table.jsonl"), strict=True):
        python, program, *arguments = shlex.split(line["command"])
        assert (python, program) == ("python", "main.py")
        args = main_program.make_parser().parse_args(arguments)
        made = load_config(ROOT / args.config, [*args.overrides, f"output_dir={run.parent}"], log=args.log)
        assert made.to_yaml() == (run / "config.yaml").read_text(encoding="utf-8")


def test_lines_are_appended_and_replaced_in_their_place_only_if_asked(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.jsonl"
    record_all(runs[:1], table)
    record_all(runs[1:], table)
    before = table.read_text(encoding="utf-8")
    results = json.loads((runs[0] / "results.json").read_text(encoding="utf-8"))
    (runs[0] / "results.json").write_text(json.dumps(results | {"commit": "another"}), encoding="utf-8")
    with pytest.raises(SystemExit):
        record_all(runs[:1], table)
    assert f"{table}: holds a run mbs_0 already; --overwrite" in capsys.readouterr().err
    assert table.read_text(encoding="utf-8") == before
    lines = record_all(runs[:1], table, "--overwrite")
    assert [line["name"] for line in lines] == ["mbs_0", "mbs_1", "tuned_0"]
    assert lines[0]["commit"] == "another"
    assert table.read_text(encoding="utf-8").splitlines()[1:] == before.splitlines()[1:]


def test_what_cannot_be_recorded_is_named_and_the_table_is_left_as_it_was(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.jsonl"
    unfinished = write_run(tmp_path / "runs", "unfinished", num_steps=1)
    twin = write_run(tmp_path / "others", "mbs_0")
    younger = write_run(tmp_path / "runs", "younger")
    text = (younger / "config.yaml").read_text(encoding="utf-8")
    (younger / "config.yaml").write_text(text + "unheard_of: 3\n", encoding="utf-8")
    wrong = {
        f"{unfinished}: has finished 1 steps": [unfinished],
        "mbs_0: two runs have this name": [runs[0], twin],
        f"{younger / 'config.yaml'}: written by another version of this code": [younger],
        str(tmp_path / "none"): [tmp_path / "none"],
    }
    for expected, folders in wrong.items():
        with pytest.raises(SystemExit) as caught:
            record_all(folders, table)
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        record_all(runs, tmp_path / "table.csv")
    assert "ends with .jsonl" in capsys.readouterr().err
    assert not table.exists()


def test_a_damaged_line_is_named_by_file_and_number(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.jsonl"
    lines = record_all(runs, table)
    damaged: list[tuple[bytes, str]] = [
        (b'{"name": "cut', "Unterminated string"),
        (b"\xff\xfe{", "codec can't decode"),
        (b"3", "expected a mapping, found int"),
        (json.dumps({**lines[1], "changes": None}).encode(), "changes a mapping"),
        (json.dumps({**lines[1], "steps": [{}]}).encode(), "steps.0.per_class_iou: Field required"),
        (json.dumps({**lines[1], "base": "configs/gone.yaml"}).encode(), "gone.yaml: no such config file"),
        (json.dumps(lines[0]).encode(), "run mbs_0 stands in line 1 already"),
    ]
    first, _, third = table.read_bytes().splitlines()
    for line, expected in damaged:
        table.write_bytes(b"\n".join([first, line, third]))
        with pytest.raises(SystemExit) as caught:
            summarize([str(table)])
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {table}:2: ")
        assert expected in message


def test_the_table_of_the_repository_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(ROOT / "docs/results/voc_animals.jsonl"), "--group-by", "setting,method"]
    assert summarize(command) == 0
    assert summarize([*command, "--where", "log=animals_overlap_joint_seed0"]) == 0
    assert "| overlap | joint | 1 | 51.6 | 55.3 | 29.9 | 48.6 |" in capsys.readouterr().out


def test_every_command_of_the_repositorys_table_makes_a_config_of_today() -> None:
    pytest.importorskip("methods", reason="the table has the spelling of the methods' package")
    lines = (ROOT / "docs/results/voc_animals.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 272
    for line in map(json.loads, lines):
        args = main_program.make_parser().parse_args(shlex.split(line["command"])[2:])
        made = load_config(ROOT / args.config, args.overrides, log=args.log)
        assert (made.log, made.seed, made.setting) == (line["name"], line["seed"], line["setting"])
        assert (made.variant or line["method"]) == line["variant"]
