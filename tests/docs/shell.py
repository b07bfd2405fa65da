"""What a block of shell commands would run: bash expands it, and no program starts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("python", "bash", "torchrun", "pip")
"""Programs that a page may call; grep may filter what they print."""

# bash itself expands loops, variables, quotes and globs, so nothing here parses shell. A function stands for a program.
# PATH holds no other program: what is none of them is recorded too, under its own name.
PRELUDE = """
set -u
PATH=/nowhere
record() { { printf '%s\\0' "$@" -- ENVIRONMENT; "$ENV" -0; printf 'END\\0'; } >> "$RECORD"; }
command_not_found_handle() { record "$@"; }
grep() { while read -r; do :; done; }
"""


class Command(NamedTuple):
    """A program with its arguments, and what the block sets in its environment."""

    argv: list[str]
    environment: dict[str, str]


def expand(block: str, folder: Path) -> list[Command]:
    """Return the commands that a block of bash would run in `folder`, in their order.

    Fails where bash does, as with a syntax error.
    """
    record = folder / "record"
    record.write_bytes(b"")
    env = shutil.which("env")
    assert env is not None
    script = PRELUDE + "".join(f'{name}() {{ record {name} "$@"; }}\n' for name in PROGRAMS) + block
    subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=folder,
        env=os.environ | {"RECORD": str(record), "ENV": env},
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    commands = []
    for entry in record.read_bytes().decode().split("END\0")[:-1]:
        argv, environment = entry.split("--\0ENVIRONMENT\0")
        pairs = dict(pair.split("=", 1) for pair in environment.split("\0") if "=" in pair)
        ours = ("PATH", "RECORD", "ENV", "_", "SHLVL", "PWD", "OLDPWD")
        own = {
            name: value for name, value in pairs.items() if os.environ.get(name) != value and name not in ours
        }
        commands.append(Command(argv.split("\0")[:-1], own))
    return commands
