"""What the command lines have in common; imports nothing heavy, so that --help is there at once."""

import argparse
from pathlib import Path


def new_parser(command: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help shows `description` as it is written and ends with examples, a line each.

    command: how the program is called, such as 'python -m tools.predict'.
    """
    lines = "".join(f"  {line}\n" for line in examples.strip().splitlines())
    return argparse.ArgumentParser(
        prog=command,
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(group: argparse._ArgumentGroup, required: bool = True) -> None:
    """Add --config and --set."""
    group.add_argument(
        "--config", type=Path, required=required, metavar="FILE", help="YAML file, such as configs/demo.yaml"
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
        help=f"override a field of {of}, as in --set train.batch_size=8 (repeatable)",
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
    group.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="RUN/checkpoints/step_N.pth")
