"""models/backbone.py: which of timm's backbones fit, and what those that do not are told."""

import pytest
import torch

from models import DeepLabV3
from models.backbone import build_backbone
from tests.models.test_deeplabv3 import make_options, random_images, small_model


@pytest.mark.parametrize("name", ["resnet1001", "", "resnet18.no_such_tag"])
def test_an_unknown_backbone_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.backbone: timm has no model '{name}'"):
        DeepLabV3([3], make_options(backbone=name))


def test_an_unknown_backbone_names_similar_ones() -> None:
    with pytest.raises(ValueError, match=r"similar: .*resnet101"):
        DeepLabV3([3], make_options(backbone="resnet1001"))


@pytest.mark.parametrize(
    ("name", "stride", "told"),
    [
        ("vgg11", 16, r"its last map has a stride of 32; set model\.output_stride=32"),
        ("test_vit", 32, r"its last map has a stride of 16; set model\.output_stride=16"),
        (
            "test_maxvit",
            32,
            r"images of any size \(AssertionError: height \(24\) must be divisible by window",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_and_told_what_is_possible(
    name: str, stride: int, told: str
) -> None:
    with pytest.raises(ValueError, match=rf"'{name}'.*output stride {stride}.*{told}.*swin_base"):
        DeepLabV3([3], make_options(backbone=name, output_stride=stride))


def test_maps_of_another_size_than_their_stride_says_are_refused() -> None:
    """Inception's convolutions cut what lies beyond their last window."""
    with pytest.raises(
        ValueError, match=r"'inception_v3'.*a map of \(20, 36\) cells where \(24, 40\) are due"
    ):
        build_backbone("inception_v3", False, output_stride=32)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_vit"])
def test_a_transformer_takes_images_of_any_size_and_gives_maps_channels_first(name: str) -> None:
    stride = 32 if name.startswith("swin") else 16
    model = small_model([3, 2], backbone=name, output_stride=stride)
    output = model(random_images(75, 51), with_stages=True)
    assert output.logits.shape == (2, 5, 75, 51)
    height, width = (96, 64) if stride == 32 else (80, 64)
    assert [x.shape[2:] for x in output.stages] == [(height // s, width // s) for s in model.strides]
    assert [x.shape[1] for x in output.stages] == ([96, 192, 384, 768] if stride == 32 else [64] * 4)
    padded = model.pixel_mean.expand(2, 3, height, width).clone()
    padded[:, :, :75, :51] = random_images(75, 51)
    torch.testing.assert_close(output.logits, model(padded).logits[:, :, :75, :51])
    assert torch.equal(
        model.most_likely(output.grid_logits, torch.Size((75, 51))), output.logits.argmax(dim=1)
    )
