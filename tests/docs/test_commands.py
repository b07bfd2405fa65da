"""Commands of the README and of docs/ are ones that the programs take.

bash expands every block, and no program starts: each command is then checked in this process. CHECKS says how, and what
such a check leaves open. A command that no check knows fails.
"""

from __future__ import annotations

import ast
import importlib
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import yaml

import download_ade20k
import main
from datasets.class_list import read_class_list
from tests.docs.pages import Block, find_blocks
from tests.docs.shell import Command, expand
from tests.support.cli import call_main, set_fields
from tests.support.paths import ROOT
from tools import sweep
from trainer.config import load_config

LANGUAGES = {"bash", "python", "yaml", "bibtex", ""}


class Check(NamedTuple):
    """How a command that starts with some words is checked; leaves_open: what only a real run would show, and why."""

    words: tuple[str, ...]
    run: Callable[[list[str]], None]
    leaves_open: str


def check_main(argv: list[str]) -> None:
    """The arguments parse and the config loads; drawn data are planned as --dry-run does, of fewer images."""
    args = main.make_parser().parse_args(argv)
    config_file = ROOT / args.config
    config = load_config(config_file, args.overrides, log=args.log)
    if config.data.name == "shapes" and config.init_from is None:
        overrides = set_fields(*args.overrides, "data.num_train=100", "data.num_val=20")
        result = call_main("--config", config_file, *overrides, "--dry-run")
        assert result.returncode == 0, result.stderr


def check_torchrun(argv: list[str]) -> None:
    """The launcher's arguments parse, and so do main.py's behind them."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(argv)
    assert args.training_script == "main.py"
    check_main(args.training_script_args)


def check_launch(argv: list[str]) -> None:
    """The same for the older launcher."""
    from torch.distributed.launch import parse_args

    args = parse_args(argv)
    assert args.training_script == "main.py"
    check_main(args.training_script_args)


def check_tool(argv: list[str]) -> None:
    """The tool's parser takes the arguments; a config that they name loads."""
    name, *arguments = argv
    args = importlib.import_module(f"tools.{name}").make_parser().parse_args(arguments)
    if getattr(args, "config", None) is not None:
        load_config(ROOT / args.config, getattr(args, "overrides", []))


def check_sweep(argv: list[str]) -> None:
    """The sweep's dry run prints commands, each of which is one that main.py takes."""
    arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in argv]
    if "--dry-run" not in arguments:
        arguments.append("--dry-run")
    assert sweep.main(arguments) == 0


def check_submit(argv: list[str]) -> None:
    """What a sweep's own script hands to sbatch are options; tests/tools/test_sweeping.py runs the script."""
    assert all(word.startswith("--") for word in argv)


def check_download_ade20k(argv: list[str]) -> None:
    """The parser takes the arguments."""
    download_ade20k.make_parser().parse_args(argv)


def check_download_voc(argv: list[str]) -> None:
    """The script is there, and takes a folder at most."""
    assert (ROOT / "download_voc.sh").is_file()
    assert len(argv) <= 1


def check_rare_shapes(argv: list[str]) -> None:
    """It takes the folder to draw into."""
    assert len(argv) == 1


def check_requirements(argv: list[str]) -> None:
    """The file of requirements is there."""
    option, file = argv
    assert option == "-r"
    assert (ROOT / file).is_file()


def check_tensorboard(argv: list[str]) -> None:
    """It is a requirement, and takes a folder of logs."""
    assert any(
        line.startswith("tensorboard") for line in (ROOT / "requirements.txt").read_text().splitlines()
    )
    option, _ = argv
    assert option == "--logdir"


def check_pytest(argv: list[str]) -> None:
    """pytest is what runs this; the pages give it no arguments of its own."""
    assert argv == []


CHECKS = [
    Check(
        ("python", "main.py"),
        check_main,
        "training takes minutes; the data and checkpoints of others are absent",
    ),
    Check(("python", "-m", "docs.results.bf16_simulated"), check_main, "takes the arguments of main.py"),
    Check(("python", "-m", "docs.results.rare_shapes"), check_rare_shapes, "draws 450 images"),
    Check(("torchrun",), check_torchrun, "needs GPUs, or several processes"),
    Check(("python", "-m", "torch.distributed.launch"), check_launch, "needs GPUs, or several processes"),
    Check(("bash", "main.sh"), check_sweep, "training takes hours"),
    Check(("bash", "jobs/submit.sh"), check_submit, "needs Slurm"),
    Check(("python", "download_ade20k.py"), check_download_ade20k, "downloads 1 GB"),
    Check(("bash", "download_voc.sh"), check_download_voc, "downloads 2 GB"),
    Check(("python", "-m", "pip", "install"), check_requirements, "needs the network"),
    Check(("tensorboard",), check_tensorboard, "serves until it is stopped"),
    Check(("python", "-m", "pytest"), check_pytest, "runs this test"),
]


def check(argv: list[str]) -> None:
    """Run the check of a command; raises AssertionError where none knows it."""
    for words, run, _ in CHECKS:
        if tuple(argv[: len(words)]) == words:
            return run(argv[len(words) :])
    if argv[:2] == ["python", "-m"] and argv[2].startswith("tools."):
        return check_tool([argv[2].removeprefix("tools."), *argv[3:]])
    raise AssertionError(f"no check knows this command: {argv}")


@pytest.mark.parametrize("block", find_blocks("bash"), ids=str)
def test_every_command_of_a_block_is_one_that_the_program_takes(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = expand(block.text, tmp_path)
    assert commands, "a block of bash without a command"
    # Where nothing lies that a user may have left in the repository, such as runs/.
    monkeypatch.chdir(tmp_path)
    for command in commands:
        # Told of no GPU, a sweep does not start Python to count them.
        with patch.dict(os.environ, {"NUM_GPUS": "1"} | command.environment):
            try:
                check(command.argv)
            except SystemExit as end:
                pytest.fail(f"{' '.join(command.argv)} is refused (exit code {end.code})")


def test_a_wrong_option_a_wrong_field_and_an_unknown_program_are_noticed(tmp_path: Path) -> None:
    demo = ["python", "main.py", "--config", "configs/demo.yaml"]
    with pytest.raises(SystemExit):
        check([*demo, "--dryrun"])
    with pytest.raises(ValueError, match=r"train\.batchsize"):
        check([*demo, "--set", "train.batchsize=8"])
    with pytest.raises(SystemExit):
        check(["python", "-m", "tools.predict", "step_0.pth", "photos"])
    (unknown,) = expand("rm -r runs", tmp_path)
    with pytest.raises(AssertionError, match="no check knows"):
        check(unknown.argv)


def test_bash_expands_what_a_block_says(tmp_path: Path) -> None:
    text = (
        'base=x\nfor seed in 0 1; do\n    SEEDS="$seed 2" bash main.sh \\\n        "$base y" | grep z\ndone\n'
    )
    assert expand(text, tmp_path) == [
        Command(["bash", "main.sh", "x y"], {"SEEDS": "0 2"}),
        Command(["bash", "main.sh", "x y"], {"SEEDS": "1 2"}),
    ]


def test_every_block_names_its_language_or_holds_no_command() -> None:
    assert {block.language for block in find_blocks()} <= LANGUAGES
    starts = ("python ", "bash ", "torchrun ", "pip ", "$ ")
    lines = [line for block in find_blocks("") for line in block.text.splitlines()]
    assert [line for line in lines if line.startswith(starts)] == []


@pytest.mark.parametrize("block", find_blocks("python"), ids=str)
def test_a_block_of_python_compiles(block: Block) -> None:
    ast.parse(block.text, str(block))


USES_A_MODEL = [block for block in find_blocks("python") if 'load_model("runs/demo/' in block.text]


@pytest.mark.parametrize("block", USES_A_MODEL, ids=str)
def test_the_snippet_that_uses_a_model_names_the_classes_of_an_image(
    block: Block,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs/demo/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/demo/checkpoints/step_2.pth").symlink_to(finished_run / "checkpoints/step_1.pth")
    (tmp_path / "runs/demo/panels").symlink_to(finished_run / "panels")
    (tmp_path / "snippet.py").write_text(f"{block.text}\nprint(list(classes.shape))\n")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("snippet.py", run_name="__main__")
    names, shape = capsys.readouterr().out.splitlines()
    assert yaml.safe_load(shape) == [32, 32], "of an image that the run has kept"
    said = yaml.safe_load(names)
    assert said
    assert set(said) <= {"background", "ring", "disc", "star", "cross"}


def test_the_readme_and_the_page_show_the_snippet() -> None:
    assert {block.page for block in USES_A_MODEL} == {"README.md", "docs/use_a_model.md"}


def test_the_list_of_classes_that_own_images_shows_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in find_blocks("yaml") if block.page == "docs/own_images.md"]
    (tmp_path / "classes.yaml").write_text(block.text)
    classes = read_class_list(tmp_path, "")
    assert classes.names == ("background", "pear", "kiwi")
    assert dict(classes.coding.colours)[255, 255, 255] == 255
