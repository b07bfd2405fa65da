"""Say what this machine has and lacks.

Without a config: versions, devices, libraries and memory. With one: also whether its data and the weights of its
backbone are here. Every problem comes with its fix; exit code 0: none, 2: some.
"""

from __future__ import annotations  # an older Python is to be told, not to fail at a type

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.arguments import add_config, fail, new_parser
from utils.errors import explain
from utils.units import format_size

if TYPE_CHECKING:
    from trainer.config import (
        Config,  # at run time only once the packages that it needs are known to be there
    )

EXAMPLES = """
python -m tools.doctor
python -m tools.doctor --config configs/voc.yaml --set data.root=/data/voc
"""
ROOT = Path(__file__).resolve().parents[1]
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Under which timm's weights lie in the cache."""
MISSING = "missing"
BROKEN = "cannot be imported"
OLDEST_PYTHON = (3, 10)
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "mmcv-lite": None}
"""Under which packages are imported, where that is not their name; mmcv is left to `check_machine`, with its OpenCV."""
SHARED_MEMORY = 256 * 2**20
"""Bytes through which data workers hand over images; containers often have 64 MiB."""


class Finding(NamedTuple):
    """One thing that was looked at; `fix` is what to do about it, '' where it is as it should be."""

    what: str
    found: str
    fix: str = ""


def check_python() -> Finding:
    """Look at Python's version."""
    least = ".".join(map(str, OLDEST_PYTHON))
    is_old = sys.version_info[:2] < OLDEST_PYTHON
    fix = f"needs {least}: install a newer one and make the environment with it" if is_old else ""
    return Finding("Python", platform.python_version(), fix)


def check_packages(requirements: str) -> Iterator[Finding]:
    """Look for the packages of a requirements file (lines of NAME>=VERSION), and whether they can be imported.

    After the first that cannot none is imported any more: those that use it would fail as well.
    """
    is_broken = False
    for name, least in re.findall(r"^([\w-]+)>=([\d.]+)$", requirements, re.MULTILINE):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, MISSING, "`pip install -r requirements.txt`")
            continue
        is_old = _numbers(version) < _numbers(least)
        fix = f"needs {least}: `pip install -U '{name}>={least}'`" if is_old else ""
        problem = "" if is_broken or fix else _import_problem(name)
        is_broken = is_broken or problem != ""
        yield Finding(name, BROKEN, problem) if problem else Finding(name, version, fix)


def _import_problem(name: str) -> str:
    """Why a package that is installed cannot be imported, and what to do; '' where it can."""
    module = MODULES.get(name, name)
    try:
        if module is not None:
            importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything, such as torchvision RuntimeError
        reason = " ".join(str(error).split())[:200]
        fix = f"`pip install --force-reinstall {name}`"
        if name in ("torch", "torchvision"):
            fix = "`pip install --force-reinstall torch torchvision`, which must be of one release"
        return f"{fix} ({type(error).__name__}: {reason})"
    return ""


def _numbers(version: str) -> list[int]:
    """2.15.0+cpu as 2, 15, 0."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def check_devices() -> Iterator[Finding]:
    """Look for GPUs; a CPU will do."""
    import torch

    yield Finding("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for PyTorch")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", f"{gpu.name}, {format_size(gpu.total_memory)}")
    if not torch.cuda.is_available():
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        # A driver without a PyTorch that can use it is a mistake; no driver is none.
        has_driver = shutil.which("nvidia-smi") is not None
        fix = "reinstall PyTorch for this driver as pytorch.org says" if has_driver else ""
        yield Finding("GPU", f"none that PyTorch can use ({build})", fix)


def check_machine(output_dir: Path) -> Iterator[Finding]:
    """Look at OpenCV and its libGL, shared memory, and the folder of the runs."""
    from datasets.file_dataset import check_libraries

    try:
        check_libraries()
        yield Finding("OpenCV, libGL", "loaded")
    except ImportError as error:
        yield Finding("OpenCV, libGL", "cannot be loaded", str(error))
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        fix = (
            "start the container with --shm-size=2g, or set data.num_workers=0"
            if size < SHARED_MEMORY
            else ""
        )
        yield Finding("shared memory", format_size(size), fix)
    from utils.files import check_writable

    what = f"results in {output_dir}"
    try:
        check_writable(output_dir)
    except (ValueError, OSError) as error:
        yield Finding(what, "cannot be written", f"output_dir: {explain(error)}")
        return
    folder = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    yield Finding(what, f"{format_size(shutil.disk_usage(folder).free)} free")


def check_config(config: Config) -> Iterator[Finding]:
    """Look for the data, the weights, the checkpoint and the package that a config names."""
    from datasets import DATASETS
    from trainer.data import open_split

    for split in ("train", "val"):
        what = f"data, {config.data.name} {split}"
        try:
            yield Finding(what, f"{len(open_split(config, split).ids):,} images")
        except (ValueError, OSError) as error:
            how = DATASETS[config.data.name].how_to_get
            advice = f"{how}, or " if how else ""
            yield Finding(what, "missing or wrong", f"{explain(error)} ({advice}set data.root)")
    yield check_weights(config.model.backbone, config.model.pretrained)
    if config.init_from is not None:
        yield check_base(config.init_from)
    if config.logging.wandb is not None:
        is_there = importlib.util.find_spec("wandb") is not None
        fix = "" if is_there else "`pip install wandb`, or set logging.wandb to null"
        yield Finding("wandb", MISSING if fix else "installed", fix)


def check_base(init_from: str) -> Finding:
    """Look for the base step that a run starts from; nothing is fetched."""
    from trainer.shared_base import is_address, read_registry

    if is_address(init_from) or init_from in read_registry():
        return Finding("init_from", f"{init_from}, which the run fetches where it is not in the cache")
    is_there = Path(init_from).is_file()
    fix = "" if is_there else "init_from: no such file; train the base step, or set it to null"
    return Finding("init_from", MISSING if fix else init_from, fix)


def check_weights(backbone: str, pretrained: bool | str) -> Finding:
    """Look for a backbone's weights on this machine; nothing is fetched."""
    what = f"weights, {backbone}"
    if pretrained is False:
        return Finding(what, "none wanted (model.pretrained=false)")
    if isinstance(pretrained, str):
        if Path(pretrained).is_file():
            return Finding(what, pretrained)
        return Finding(
            what, "missing", f"model.pretrained: no file '{pretrained}'; give the path of a state dict"
        )
    import timm
    from huggingface_hub import try_to_load_from_cache

    try:
        source = timm.get_pretrained_cfg(backbone)
    except RuntimeError:  # no such tag after the dot
        source = None
    if source is None:
        return Finding(
            what, "unknown", "model.backbone: timm has no such model with weights; see timm.list_models()"
        )
    if not source.has_weights:
        return Finding(
            what,
            "none to be fetched",
            f"model.backbone: timm has no weights for {backbone}; take another backbone, or set model.pretrained=PATH, "
            "or model.pretrained=false",
        )
    found = source.hf_hub_id and [
        path
        for name in WEIGHT_FILES
        if isinstance(path := try_to_load_from_cache(source.hf_hub_id, name), str)
    ]
    if found:
        return Finding(what, found[0])
    return Finding(
        what,
        "not in the cache",
        f"with a network the first run fetches {source.hf_hub_id or source.url}; without, fetch them elsewhere and set "
        "model.pretrained=PATH, or model.pretrained=false",
    )


def examine(path: Path | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """Look at everything; what cannot be looked at with an old Python, or a package missing or broken, is left out.

    Raises ValueError or OSError for a config that is wrong.
    """
    python = check_python()
    yield python
    if python.fix:
        return
    packages = list(check_packages((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    yield from packages
    if any(finding.found in (MISSING, BROKEN) for finding in packages):
        return
    from trainer.config import load_config

    config = load_config(path, overrides) if path else None
    yield from check_devices()
    yield from check_machine(config.output_dir if config else Path("runs"))
    if config is not None:
        yield from check_config(config)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.doctor", __doc__, EXAMPLES)
    add_config(parser.add_argument_group("what is to be run"), required=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.overrides and args.config is None:
        parser.error("--set overrides a config: give --config, too")
    num_problems = 0
    try:
        for finding in examine(args.config, args.overrides):
            print(f"{finding.what:<24} {finding.found}")
            if finding.fix:
                num_problems += 1
                print(f"{'':<24} fix: {finding.fix}")
    except (ValueError, OSError) as error:
        fail(parser, error)
    print(f"{num_problems or 'no'} problem{'' if num_problems == 1 else 's'}")
    return 2 if num_problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
