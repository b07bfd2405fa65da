"""models/pretrained.py: state dicts of other codebases give the network that they were saved from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from models import MODELS, SegmentationModel, Segmenter
from models.backbone import build_backbone, build_vit

IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def randomise(module: nn.Module) -> None:
    """Give every weight and statistic a value of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if "running_var" in name else 0.2 * (noise - 0.5))


def last_stage(backbone: nn.Module) -> Tensor:
    stages: list[Tensor] = backbone.eval()(IMAGES)
    return stages[-1]


def save(state: Mapping[str, Any], folder: Path) -> str:
    torch.save(dict(state), folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_torchvision_s_resnet_is_read_with_the_prefixes_of_wrappers(prefix: str, tmp_path: Path) -> None:
    source = torchvision.models.resnet18()
    randomise(source)
    path = save({f"{prefix}{name}": x for name, x in source.state_dict().items()}, tmp_path)
    layers = nn.Sequential(*list(source.eval().children())[:-2])
    backbone = build_backbone("resnet18", path, output_stride=32).network
    torch.testing.assert_close(last_stage(backbone), layers(IMAGES))


def iabn_state(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a ResNet by the names of MiB's, with every other gamma negative, as in-place ABN may store it."""
    state = {}
    for name, x in source.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        first, *rest = name.split(".")
        theirs = f"mod1.{name}"
        if first.startswith("layer"):
            block, layer, *more = rest
            if layer == "downsample":
                layer, more = {"0": "proj_conv", "1": "proj_bn"}[more[0]], more[1:]
            else:
                layer = f"convs.{layer}"
            theirs = ".".join([f"mod{int(first[-1]) + 1}", f"block{int(block) + 1}", layer, *more])
        is_gamma = x.ndim == 1 and name.endswith("weight")
        sign = torch.tensor([1.0, -1.0]).repeat(len(x) // 2) if is_gamma else torch.tensor(1.0)
        state[f"module.{theirs}"] = sign * (x - 1e-5 if is_gamma else x)
    return state


def test_mib_s_in_place_abn_gives_the_network_that_scales_by_the_size_of_gamma(tmp_path: Path) -> None:
    source = timm.create_model("resnet26", features_only=True, out_indices=(4,))
    randomise(source)
    with torch.no_grad():
        for module in source.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_().add_(0.1)
    state = iabn_state(source.state_dict())
    assert {"module.mod1.conv1.weight", "module.mod2.block1.proj_bn.weight"} <= state.keys()
    assert "module.mod5.block2.convs.conv3.weight" in state
    path = save({"state_dict": state}, tmp_path)
    backbone = build_backbone("resnet26", path, output_stride=32).network
    torch.testing.assert_close(last_stage(backbone), last_stage(source))


def segmenter(pretrained: str | bool = False) -> SegmentationModel:
    small = {
        "backbone": "test_vit",
        "patch_size": 8,
        "channels": 12,
        "num_heads": 2,
        "pretrained": pretrained,
    }
    return Segmenter([3], Segmenter.Options(**small), 32).eval()


def authors_state(model: SegmentationModel) -> dict[str, Tensor]:
    """The state of a Segmenter by the names of its authors (rstrudel/segmenter), below model_state."""
    renamed = {"embed.": "proj_dec.", "norm.": "decoder_norm."}
    state: dict[str, Tensor] = {}
    for name, x in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            state[f"module.encoder.{rest}"] = x
        elif part == "decoder" and rest.startswith("project_"):
            theirs = {"project_patches.weight": "proj_patch", "project_classes.weight": "proj_classes"}[rest]
            state[f"module.decoder.{theirs}"] = x.T
        elif part == "decoder":
            for ours, theirs in renamed.items():
                rest = theirs + rest.removeprefix(ours) if rest.startswith(ours) else rest
            state[f"module.decoder.{rest}"] = x
    return state | {
        "module.decoder.cls_emb.0": torch.zeros(1, 16, 12),
        "module.encoder.head.bias": torch.zeros(5),
    }


def test_the_authors_segmenter_gives_encoder_and_decoder_and_what_is_left_out_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = segmenter()
    randomise(source.get_submodule("backbone"))
    randomise(source.get_submodule("decoder"))
    path = save({"model_state": authors_state(source), "best_score": 0.8}, tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = segmenter(path)
    # Patches attend to class tokens, which are the task's own.
    loaded.get_submodule("classifier").load_state_dict(source.get_submodule("classifier").state_dict())
    ours, theirs = source(IMAGES[:, :, :32, :32]), loaded(IMAGES[:, :, :32, :32])
    torch.testing.assert_close(theirs.features, ours.features)
    assert caplog.messages == [
        f"model.pretrained: '{path}': 1 weights are not used: decoder.cls_emb.0",
    ]


def test_a_decoder_of_another_size_is_listed(tmp_path: Path) -> None:
    state = authors_state(segmenter())
    state["module.decoder.proj_dec.bias"] = torch.zeros(13)
    del state["module.decoder.decoder_norm.bias"]
    with pytest.raises(
        ValueError,
        match=r"the decoder of segmenter: it lacks norm\.bias; it has embed\.bias of shape \(13,\), here \(12,\)",
    ):
        segmenter(save(state, tmp_path))


def test_weights_that_the_network_has_not_are_refused_and_those_of_its_head_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = timm.create_model("test_resnet").state_dict() | {"extra.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"holds weights that 'test_resnet' has not: extra\.weight"):
        build_backbone("test_resnet", save(state, tmp_path), output_stride=16)
    build_vit("test_vit", save(timm.create_model("test_vit").state_dict(), tmp_path), 32)
    assert caplog.messages == []
    assert set(MODELS) >= {"segmenter"}
