"""What `train.amp: auto` means: once for a run, and the same on all its ranks."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from trainer.config import Config
from utils.config.read import read_yaml
from utils.distributed import Worker

Precision = Literal["off", "bf16"]


def settle_precision(config: Config, device: torch.device) -> Config:
    """Return the config with the precision that `auto` means: what the run began with, else what the device is fast at.

    Any other precision stays.
    """
    if config.train.amp != "auto":
        return config
    precision = precision_so_far(config) or fast_precision(device)
    return config.model_copy(update={"train": config.train.model_copy(update={"amp": precision})})


def precision_so_far(config: Config) -> Precision | None:
    """Return what `auto` meant when the run began, None for a run that has not begun or was given its precision."""
    path = config.run_dir / "config.yaml"
    try:
        train = read_yaml(path)["train"]
        return train["amp"] if train["amp"] in get_args(Precision) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong with it is told where the run is checked


def fast_precision(device: torch.device) -> Precision:
    """Return bf16 where the processor computes in it, off where it would have to emulate it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    # Older releases of PyTorch do not tell what a CPU can do.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16")) else "off"


def check_same_precision(config: Config, worker: Worker) -> None:
    """Raise ValueError where the machines of a run are fast at different precisions."""
    found = worker.gather(config.train.amp)
    if len(set(found)) > 1:
        ranks = ", ".join(f"rank {rank}: {precision}" for rank, precision in enumerate(found))
        raise ValueError(
            f"train.amp: auto means different things on the machines of this run ({ranks}); set it to bf16 or off"
        )
