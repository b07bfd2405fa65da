"""Dilated depthwise convolutions whose gradients are computed fast on a CPU.

PyTorch's CPU kernels (oneDNN) take several times as long for the gradients of a depthwise convolution if it is
dilated. With a dilation of d, the output at (i, j) reads only inputs whose row and column leave the remainders of i and
j by d. So a dilated convolution is a plain one over each of the d · d phases of the grid (DeepLab, Chen et al., arXiv
1606.00915, section 3.1). The gradients are computed in that form.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def speed_up_dilated_depthwise(network: nn.Module) -> None:
    """Give the dilated depthwise convolutions of `network` the faster gradients, in place.

    Outputs, parameters, hooks and the keys of the state dict stay as they are.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _has_phases(module):
            module.__class__ = DilatedDepthwiseConv2d


def _has_phases(conv: nn.Conv2d) -> bool:
    """Whether the convolution is depthwise, dilated alike in both directions, and keeps the size of its input."""
    dilation = conv.dilation[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.stride == (1, 1)
        and conv.dilation == (dilation, dilation)
        and dilation > 1
        and all(side % 2 == 1 for side in conv.kernel_size)
        and conv.padding == tuple(dilation * (side // 2) for side in conv.kernel_size)
        and conv.padding_mode == "zeros"
    )


class DilatedDepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d, its gradients computed over the phases of the grid where that is faster.

    (B,C,H,W) -> (B,C,H,W). It is what `speed_up_dilated_depthwise` makes of a convolution that fits.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_faster_by_phases(input):
            return super().forward(input)
        output: Tensor = _GradientsByPhases.apply(input, self.weight, self.bias, self.padding, self.dilation)
        return output

    def _is_faster_by_phases(self, input: Tensor) -> bool:
        # Half precision takes longer by phases: bfloat16 1.0 to 1.3 times (dilation 2, channels_last). So does a
        # phase that is smaller than the kernel: it is mostly padding.
        return (
            input.device.type == "cpu"
            and input.dim() == 4
            and input.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and torch.is_grad_enabled()
            and (input.requires_grad or any(x.requires_grad for x in self.parameters()))
            and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
            and all(
                -(-side // self.dilation[0]) >= kernel_side
                for side, kernel_side in zip(input.shape[2:], self.kernel_size, strict=True)
            )
        )


class _GradientsByPhases(torch.autograd.Function):
    """Depthwise `F.conv2d` of stride 1 that keeps the size of its input, differentiated phase by phase."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        return F.conv2d(input, weight, bias, padding=padding, dilation=dilation, groups=input.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, _, (ctx.dilation, _) = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_input = grad_weight = None
        if needs_input or needs_weight:
            dilation = ctx.dilation
            (height, width), num_phases = input.shape[2:], dilation**2
            bottom, right = -height % dilation, -width % dilation
            # Phase p of channel c becomes channel c · d² + p.
            phases, grad_phases = (
                F.pixel_unshuffle(F.pad(x, (0, right, 0, bottom)), dilation) for x in (input, grad)
            )
            grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad_phases,
                phases,
                weight.repeat_interleave(num_phases, dim=0),
                None,  # sizes of the bias
                [1, 1],  # stride
                [side // 2 for side in weight.shape[2:]],  # padding
                [1, 1],  # dilation
                False,  # transposed
                [0, 0],  # output padding
                phases.shape[1],  # groups
                [needs_input, needs_weight, False],
            )
        if grad_input is not None:
            grad_input = F.pad(F.pixel_shuffle(grad_input, dilation), (0, -right, 0, -bottom))
        if grad_weight is not None:
            grad_weight = grad_weight.unflatten(0, (-1, num_phases)).sum(dim=1)
        grad_bias = grad.sum(dim=(0, 2, 3)) if needs_bias else None
        return grad_input, grad_weight, grad_bias, None, None
