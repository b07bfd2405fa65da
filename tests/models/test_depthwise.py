"""models/depthwise.py: a dilated depthwise convolution stays what it is, and its gradients too."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import build_backbone
from models.depthwise import DilatedDepthwiseConv2d, speed_up_dilated_depthwise


def make_conv(kernel_size: int = 3, dilation: int = 2, bias: bool = True, channels: int = 4) -> nn.Conv2d:
    """A seeded depthwise convolution in float64 that keeps the size of its input, made faster."""
    torch.manual_seed(0)
    conv = nn.Conv2d(
        channels,
        channels,
        kernel_size,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=channels,
        bias=bias,
        dtype=torch.float64,
    )
    speed_up_dilated_depthwise(conv)
    assert type(conv) is DilatedDepthwiseConv2d
    return conv


def direct(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """The plain form."""
    return F.conv2d(
        images, conv.weight, conv.bias, padding=conv.padding, dilation=conv.dilation, groups=conv.groups
    )


def random_images(height: int = 7, width: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images (2,4,H,W) that need a gradient."""
    return torch.randn(2, 4, height, width, dtype=dtype, requires_grad=True)


def goes_by_phases(output: Tensor) -> bool:
    """Whether the gradients will be computed by phases."""
    return type(output.grad_fn).__name__ == "_GradientsByPhasesBackward"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(17, 22), (19, 20)])
@pytest.mark.parametrize("dilation", [2, 4])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_gradients_are_those_of_the_direct_form_and_outputs_have_the_same_bits(
    kernel_size: int, dilation: int, size: tuple[int, int], layout: torch.memory_format, bias: bool
) -> None:
    conv = make_conv(kernel_size, dilation, bias).to(memory_format=layout)
    images = random_images(*size).detach().to(memory_format=layout).requires_grad_()
    output, expected = conv(images), direct(conv, images)
    assert goes_by_phases(output)
    assert torch.equal(output, expected)
    assert output.is_contiguous(memory_format=layout)
    wanted, grad = [images, *conv.parameters()], torch.randn_like(output)
    found = torch.autograd.grad(output, wanted, grad)
    for ours, theirs in zip(found, torch.autograd.grad(expected, wanted, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert found[0].is_contiguous(memory_format=layout)


def test_float32_outputs_have_the_same_bits_and_gradients_agree() -> None:
    conv, images = make_conv(5).float(), random_images(9, 11, torch.float32)
    output, expected = conv(images), direct(conv, images)
    assert goes_by_phases(output)
    assert torch.equal(output, expected)
    found, theirs = (torch.autograd.grad(x.square().sum(), [images, conv.weight]) for x in (output, expected))
    torch.testing.assert_close(found, theirs)


def test_first_and_second_derivatives_pass_gradcheck() -> None:
    conv, images = make_conv(channels=1), random_images(5, 6)[:1, :1].detach().requires_grad_()
    assert conv.bias is not None

    def run(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, images)

    assert goes_by_phases(run(images, conv.weight, conv.bias))
    assert torch.autograd.gradcheck(run, (images, conv.weight, conv.bias))
    assert torch.autograd.gradgradcheck(run, (images, conv.weight, conv.bias))


@pytest.mark.parametrize("trained", ["input", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    conv, images = make_conv().requires_grad_(False), random_images().detach()
    tensor = images if trained == "input" else conv.get_parameter(trained)
    tensor.requires_grad_()
    output = conv(images)
    assert goes_by_phases(output)
    grad = torch.randn_like(output)
    theirs = torch.autograd.grad(direct(conv, images), [tensor], grad)
    torch.testing.assert_close(torch.autograd.grad(output, [tensor], grad), theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda conv, images: conv.requires_grad_(False)(images.detach()),
        lambda conv, images: conv(images[:, :, :4]),  # phases of 2 rows, a kernel of 3
        lambda conv, images: conv(images[0]),
        lambda conv, images: conv.bfloat16()(images.bfloat16()),
        lambda conv, images: conv.to("meta")(images.to("meta")),
    ],
    ids=["no grad", "small phase", "no batch", "bfloat16", "other device"],
)
def test_elsewhere_it_is_the_plain_convolution(change: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
    assert not goes_by_phases(change(make_conv(), random_images()))


def test_under_autocast_it_is_the_plain_convolution() -> None:
    conv, images = make_conv().float(), random_images(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = conv(images), direct(conv, images)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    found, theirs = (torch.autograd.grad(x.sum(), [images, conv.weight]) for x in (output, expected))
    for ours, other in zip(found, theirs, strict=True):
        assert torch.equal(ours, other)


def test_exported_and_compiled_graphs_hold_the_plain_convolution() -> None:
    conv, images = make_conv(), random_images()
    operators = {str(node.target) for node in torch.export.export(conv, (images,)).graph.nodes}
    assert "aten.conv2d.default" in operators
    assert "_convolution" in str(torch.jit.trace(conv, images).inlined_graph)
    compiled = torch.compile(conv, backend="eager", fullgraph=True)(images)
    assert type(compiled.grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 2},
        {"padding": 1},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": 2, "groups": 2},
        {"padding": "same"},
        {"padding": (2, 1), "dilation": (2, 1)},
        {"padding": 1, "dilation": 1},
        {"padding": 2, "kernel_size": 2},
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(options: dict[str, Any]) -> None:
    conv = nn.Conv2d(4, 4, **{"kernel_size": 3, "dilation": 2, "groups": 4, **options})
    speed_up_dilated_depthwise(conv)
    assert type(conv) is nn.Conv2d


@pytest.mark.parametrize(
    ("name", "output_stride", "count"),
    [
        ("tf_efficientnet_lite0", 16, 4),
        ("mobilenetv2_100", 8, 10),
        ("test_convnext", 8, 6),
        ("test_resnet", 8, 0),
    ],
)
def test_backbones_are_built_with_them_and_keep_outputs_and_keys(
    name: str, output_stride: int, count: int
) -> None:
    backbone = build_backbone(name, False, output_stride)[0].eval()
    plain: nn.Module = timm.create_model(
        name, features_only=True, out_indices=(-4, -3, -2, -1), output_stride=output_stride
    ).eval()
    assert list(plain.state_dict()) == list(backbone.state_dict())
    plain.load_state_dict(backbone.state_dict())
    assert sum(isinstance(module, DilatedDepthwiseConv2d) for module in backbone.modules()) == count
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(backbone(images), plain(images), strict=True):
        assert torch.equal(ours, theirs)
