"""What the command lines have in common; imports nothing heavy, so that --help is there at once."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import explain


def new_parser(command: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help shows `description` as it is written and ends with examples, a line each.

    command: how the program is called, such as 'python -m tools.predict'.
    """
    return argparse.ArgumentParser(prog=command, **help_texts(description, examples))


def help_texts(description: str | None, examples: str) -> dict[str, Any]:
    """Return what makes a parser's help that of `new_parser`, as arguments for `add_parser`."""
    lines = "".join(f"  {line}\n" for line in examples.strip().splitlines())
    return {
        "description": description,
        "epilog": f"examples:\n{lines}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def add_config(group: argparse._ArgumentGroup, required: bool = True) -> None:
    """Add --config and --set."""
    group.add_argument(
        "--config",
        type=to_path,
        required=required,
        metavar="FILE",
        help="YAML file, such as configs/demo.yaml",
    )
    add_set(group)


def add_set(group: argparse._ArgumentGroup, of: str = "the config") -> None:
    """Add --set, which collects `overrides`."""
    group.add_argument(
        "--set",
        metavar="KEY.SUB=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help=f"override a field of {of}, as in --set train.batch_size=8 (repeatable; of two values the last counts)",
    )


def add_device(group: argparse._ArgumentGroup, default: str = "auto") -> None:
    """Add --device."""
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default=default,
        help="default: a GPU if there is one" if default == "auto" else f"default: {default}",
    )


def add_checkpoint(group: argparse._ArgumentGroup) -> None:
    """Add the positional CHECKPOINT."""
    group.add_argument("checkpoint", type=to_path, metavar="CHECKPOINT", help="RUN/checkpoints/step_N.pth")


def add_overwrite(group: argparse._ArgumentGroup) -> None:
    """Add --overwrite."""
    group.add_argument("--overwrite", action="store_true", help="replace what is there of an earlier call")


def to_path(text: str) -> Path:
    """Read a path; `~` is the home folder, which shells leave as it is in --option=~/folder."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser fails for a user who is not there


def fail(parser: argparse.ArgumentParser, error: Exception) -> NoReturn:
    """End a program with exit code 2 and what its user is told of an error."""
    parser.exit(2, f"error: {explain(error)}\n")


def finish(parser: argparse.ArgumentParser, run: Callable[[], list[str]], left_out: str) -> int:
    """Run a program over many images and return 0; with an error, or images left out, it exits with 2.

    run: returns a line for every image left out. left_out: what is said of them, such as 'could not be read'.
    """
    try:
        problems = run()
    except (ValueError, OSError, ImportError) as error:
        fail(parser, error)
    if problems:
        parser.exit(2, "\n".join([f"error: {len(problems)} images {left_out}:", *problems]) + "\n")
    return 0
