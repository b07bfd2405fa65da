"""A GPU that is not there: tensors without values on device cuda, and a watch over what would make the host wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)

WAITING = {
    "_local_scalar_dense",  # item(), tolist(), bool(), float()
    "equal",
    "nonzero",
    "bincount",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
}
"""Operations whose result, or its size, the host must know before it can go on."""


def fake(x: Tensor, mode: FakeTensorMode, device: torch.device = GPU) -> Tensor:
    """A tensor of the same shape, strides and type on that device."""
    with mode:
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=device)


def make_fake(module: nn.Module, mode: FakeTensorMode, device: torch.device = GPU) -> None:
    """Put fake tensors in the place of a module's parameters and buffers."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(fake(parameter, mode, device), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake(buffer, mode, device)


class HostWaitsError(AssertionError):
    """The host would wait for the GPU."""


class Watch(TorchDispatchMode):
    """Raises HostWaitsError at every operation for which the host waits; `seen` holds the names of all others.

    Copies between host and GPU count, from memory that is not pinned they wait in both directions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if name in WAITING or self._copies(name, args, kwargs) or self._looks_for_indices(name, args):
            raise HostWaitsError(f"{func}: the host waits for the GPU")
        return func(*args, **kwargs)

    def _copies(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if name == "_to_copy":
            target = kwargs.get("device")
            return target is not None and target.type != args[0].device.type
        if name == "copy_":
            return bool(args[0].device.type != args[1].device.type)
        # The value of an assignment such as x[i] = 1 is made on the host.
        return name == "index_put_" and args[0].device.type != args[2].device.type

    def _looks_for_indices(self, name: str, args: tuple[Any, ...]) -> bool:
        if name not in ("index", "index_put", "index_put_"):
            return False
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
