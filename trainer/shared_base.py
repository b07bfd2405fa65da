"""Base steps that others share: `init_from` as a file, an address, or a name of `docs/base_models.json`."""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import torch
from pydantic import BeforeValidator

from utils.download.fetching import fetch

REGISTRY = Path(__file__).resolve().parents[1] / "docs" / "base_models.json"
ENTRY = ("url", "sha256", "classes", "order", "backbone", "recipe", "figures")
"""What an entry of the registry holds; `python -m tools.publish` writes one."""


def is_address(init_from: str) -> bool:
    """Whether a base step is to be fetched from an address."""
    return re.match(r"(https?|file)://", init_from) is not None


def _spell(value: object) -> object:
    """Spell a path in one way, so that a resumed run finds it unchanged."""
    if value is not None and not isinstance(value, str | Path):
        raise ValueError(f"expected a path, an address or a name, found {value}")
    if value == "":
        raise ValueError(
            "expected a path, an address or a name, found nothing; leave it out, or set it to null"
        )
    return str(Path(value)) if value and not is_address(str(value)) else value


BaseStep = Annotated[str, BeforeValidator(_spell)]
"""Type of the field `init_from`."""


def read_registry(path: Path = REGISTRY) -> dict[str, dict[str, Any]]:
    """Return the published base steps by name; raises ValueError naming the file and the entry."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(entries, dict):
            raise TypeError(f"expected a mapping of names, found {type(entries).__name__}")
        for name, entry in entries.items():
            missing = [key for key in ENTRY if key not in entry]
            if missing:
                raise ValueError(f"{name} lacks {', '.join(missing)}")
            if not (is_address(entry["url"]) and re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])):
                raise ValueError(f"{name} needs an address (url) and 64 hexadecimal digits (sha256)")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a list of base steps ({error}); correct the entry") from error
    return entries


def base_file(init_from: str) -> Path:
    """Return the file of a base step, fetched if need be; a path is returned as it is, whether it is there or not.

    A shared file is fetched once, checked against its SHA-256, and kept in `cache_folder()`. An address may end with
    '#sha256=HEX'. Raises ValueError or OSError that begins with the field.
    """
    if is_address(init_from):
        address, _, fragment = init_from.partition("#")
        return _fetch(address, fragment.removeprefix("sha256="))
    path = Path(init_from)
    if path.exists() or len(path.parts) > 1 or path.suffix:
        return path
    entries = read_registry()
    if init_from not in entries:
        known = f"it has {', '.join(entries)}" if entries else "it has none yet"
        raise ValueError(
            f"init_from: '{init_from}' is no file, and no name in docs/base_models.json ({known}); give the path of a "
            "checkpoint, an address (https://…) or such a name"
        )
    return _fetch(entries[init_from]["url"], entries[init_from]["sha256"])


def cache_folder() -> Path:
    """Folder of fetched base steps: base_steps/ in PyTorch's, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "base_steps"


def _fetch(address: str, sha256: str) -> Path:
    name = unquote(PurePosixPath(urlsplit(address).path).name) or "base.pth"
    # Two addresses may end alike.
    key = sha256[:16] or hashlib.sha256(address.encode()).hexdigest()[:16]
    path = cache_folder() / f"{key}_{name}"
    try:
        fetch([address], path, digests={"sha256": sha256})
    except (OSError, ValueError) as error:
        raise ValueError(f"init_from: {error}") from error
    return path
