"""Scores of a run in bf16, on a CPU that only emulates it.

Convolutions and linear layers round their inputs, weights and outputs to bf16, and their gradients, and add up in
float32, as AMX and AVX512-BF16 do. They compute in float32, since PyTorch's emulation takes ten times as long. All else
runs as `train.amp: bf16` has it. Arguments are those of main.py:

    python -m docs.results.bf16_simulated --config configs/demo.yaml --log demo_bf16 --set train.amp=bf16
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from main import main

Layer = Callable[..., Tensor]


def rounded(x: Tensor) -> Tensor:
    """The value in float32 that bf16 would hold."""
    return x.bfloat16().float()


class Simulated(torch.autograd.Function):
    """A layer (input, weight, bias, …) in bf16."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, arguments: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            inputs = [rounded(x.detach()).requires_grad_() for x in tensors]
            output = layer(*inputs, *arguments)
        ctx.inputs, ctx.output, ctx.dtypes = inputs, output, [x.dtype for x in tensors]
        return output.detach().bfloat16()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            found = torch.autograd.grad(ctx.output, ctx.inputs, rounded(gradient))
        return None, None, *(x.bfloat16().to(dtype) for x, dtype in zip(found, ctx.dtypes, strict=True))


def simulate(layer: Layer) -> Layer:
    """Return a layer that is simulated where autocast would take it in bf16."""

    def run(input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return layer(input, weight, bias, *arguments)
        if bias is None:
            return Simulated.apply(lambda x, w, *rest: layer(x, w, None, *rest), arguments, input, weight)
        return Simulated.apply(layer, arguments, input, weight, bias)

    return run


if __name__ == "__main__":
    F.conv2d, F.linear = simulate(F.conv2d), simulate(F.linear)
    main()
