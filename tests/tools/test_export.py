"""tools/export.py: the exported model says what the model says, and describes itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.conv2d_same import conv2d_same
from timm.layers.padding import get_same_padding
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models import SegmentationModel, load_model
from tests.support.cli import write_tiny_config
from tools import export
from tools.export import Logits, compare, export_program, main
from trainer.checkpoint import new_model, save_checkpoint
from trainer.config import load_config, make_config

CLASSES = ["background", "ring", "disc", "star", "cross"]


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 255


def export_run(run: Path, output: Path, form: str, size: str) -> Path:
    checkpoint = str(run / "checkpoints" / "step_1.pth")
    assert main([checkpoint, "--format", form, "--size", size, "--output", str(output)]) == 0
    return run / "checkpoints" / "step_1.pth"


@torch.no_grad()
def test_torchscript_of_dynamic_size_runs_without_this_code_and_names_its_classes(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.pt"
    model, info = load_model(export_run(finished_run, path, "torchscript", "dynamic"))
    assert "of the largest logit on random images and shapes val val_00000" in capsys.readouterr().out
    extra = {"metadata.json": ""}
    exported = torch.jit.load(path, _extra_files=extra)
    images = draw(3, 3, 71, 90)
    torch.testing.assert_close(exported(images), model(images).logits)
    metadata = json.loads(extra["metadata.json"])
    assert json.loads(metadata["class_names"]) == CLASSES
    assert json.loads(metadata["palette"]) == [list(colour) for colour in info.palette]
    assert list(tmp_path.iterdir()) == [path]


default_cfgs = generate_default_cfgs(
    {name: {"mean": (0.5,) * 3, "std": (0.5,) * 3} for name in ("tiny_tf_efficientnet", "tiny_one_block_vit")}
)
"""By this name timm finds what models of this file expect of images."""


@register_model
def tiny_tf_efficientnet(**options: Any) -> nn.Module:
    """timm's smallest EfficientNet, padded as those are whose weights come from TensorFlow."""
    backbone: nn.Module = timm.create_model("test_efficientnet", pad_type="same", **options)
    return backbone


@register_model
def tiny_one_block_vit(**options: Any) -> nn.Module:
    """The first block of timm's smallest ViT: every other one is traced in the same way."""
    backbone: nn.Module = timm.create_model("test_vit", depth=1, **options)
    return backbone


def save_untrained(folder: Path, *fields: str) -> Path:
    """The checkpoint of a tiny untrained model of three classes."""
    config = load_config(write_tiny_config(folder), fields)
    torch.manual_seed(0)
    described: dict[str, Any] = {
        "step": 0,
        "num_classes": [3],
        "class_names": CLASSES[:3],
        "palette": [[0, 0, 0]] * 3,
    }
    path = folder / "step_0.pth"
    save_checkpoint(path, new_model(config, [3]), **described, config=config.model_dump(mode="json"))
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny Segmenter, untrained, whose position embeddings are those of a crop of 32 pixels."""
    folder = tmp_path_factory.mktemp("segmenter")
    fields = [
        "model.name=segmenter",
        "model.backbone=tiny_one_block_vit",
        "model.num_heads=2",
        "model.num_blocks=1",
    ]
    fields.append("model.channels=8")
    return save_untrained(folder, *fields)


def trace_dynamic(checkpoint: Path) -> tuple[SegmentationModel, nn.Module]:
    """A model, and what `--format pt2 --size dynamic` makes of it; writing and reading that takes as long again."""
    model, info = load_model(checkpoint)
    side = make_config(info.config, checkpoint).train.crop_size
    return model, export_program(Logits(model), None, side).module()


# Multiples of the patch and others, smaller than the crop and larger.
ANY_SIZE = ((1, 3, 32, 48), (3, 3, 40, 57), (1, 3, 17, 90))


@torch.no_grad()
def test_pt2_of_dynamic_size_takes_images_and_batches_of_any_size(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    model, _ = load_model(export_run(finished_run, path, "pt2", "dynamic"))
    extra = {"metadata.json": ""}
    exported = torch.export.load(path, extra_files=extra).module()
    for shape in ANY_SIZE:
        images = draw(*shape)
        torch.testing.assert_close(exported(images), model(images).logits)
    assert json.loads(json.loads(extra["metadata.json"])["size"]) == "dynamic"


@torch.no_grad()
def test_a_segmenter_is_traced_for_images_and_batches_of_any_size(segmenter: Path) -> None:
    model, traced = trace_dynamic(segmenter)
    for shape in ANY_SIZE:
        images = draw(*shape)
        torch.testing.assert_close(traced(images), model(images).logits)


@torch.no_grad()
def test_a_backbone_with_tensorflows_padding_takes_images_of_any_size(tmp_path: Path) -> None:
    checkpoint = save_untrained(tmp_path, "model.backbone=tiny_tf_efficientnet", "model.output_stride=16")
    model, traced = trace_dynamic(checkpoint)
    for shape in ((1, 3, 32, 48), (2, 3, 51, 90)):
        images = draw(*shape)
        torch.testing.assert_close(traced(images), model(images).logits)


sides, small = st.integers(1, 40), st.integers(1, 4)


@given(sides=st.tuples(sides, sides), kernel=st.tuples(small, small), stride=small, dilation=small)
def test_tensorflows_padding_is_timms(
    sides: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int
) -> None:
    for side, size in zip(sides, kernel, strict=True):
        expected = get_same_padding(side, size, stride, dilation)
        assert export.same_padding(side, size, stride, dilation) == expected
    x, weight = draw(2, 4, *sides), draw(6, 2, *kernel)
    arguments = ((stride, stride), (0, 0), (dilation, dilation), 2)
    ours = export.convolve_same(x, weight, None, *arguments)
    assert torch.equal(ours, conv2d_same(x, weight, None, *arguments))


def run_onnx(path: Path, images: Tensor) -> tuple[list[list[str | int]], dict[str, str], Tensor]:
    """Return the shapes of the inputs, the metadata, and the logits, as onnxruntime gives them."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    metadata = session.get_modelmeta().custom_metadata_map
    return [value.shape for value in session.get_inputs()], metadata, torch.from_numpy(logits)


@torch.no_grad()
def test_onnx_runs_in_onnxruntime_and_names_its_classes(finished_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "m.onnx"
    model, _ = load_model(export_run(finished_run, path, "onnx", "40x56"))
    images = draw(2, 3, 40, 56)
    shapes, metadata, logits = run_onnx(path, images)
    assert shapes == [["batch", 3, 40, 56]]
    torch.testing.assert_close(logits, model(images).logits, rtol=1e-4, atol=1e-5)
    assert json.loads(metadata["class_names"]) == CLASSES


@torch.no_grad()
def test_onnx_of_a_segmenter_resizes_its_position_embeddings_to_any_image(
    segmenter: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "m.onnx"
    assert main([str(segmenter), "--format", "onnx", "--size", "dynamic", "--output", str(path)]) == 0
    model, _ = load_model(segmenter)
    for shape in ((1, 3, 48, 32), (2, 3, 101, 57)):
        images = draw(*shape)
        shapes, metadata, logits = run_onnx(path, images)
        assert shapes == [["batch", 3, "height", "width"]]
        torch.testing.assert_close(logits, model(images).logits, rtol=1e-3, atol=1e-3)
    assert json.loads(metadata["size"]) == "dynamic"


@torch.no_grad()
def test_torchscript_of_a_segmenter_has_one_size_and_a_dynamic_one_is_refused_with_the_reason(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(segmenter), "--format", "torchscript", "--output", str(tmp_path / "m.pt"), "--size"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "dynamic"])
    assert caught.value.code == 2
    assert "a TorchScript trace of a segmenter keeps the number of patches" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "40x56"]) == 0
    model, _ = load_model(segmenter)
    images = draw(3, 3, 40, 56)
    torch.testing.assert_close(torch.jit.load(tmp_path / "m.pt")(images), model(images).logits)


def test_a_model_that_differs_is_refused_and_one_that_fails_is_told() -> None:
    def double(images: Tensor) -> Tensor:
        return 2 * images

    images = draw(1, 3, 4, 4)
    assert compare(torch.nn.Identity(), lambda x: x.clone(), [images]) == 0
    slightly = compare(torch.nn.Identity(), lambda x: x + 1e-4 * x.max(), [images])
    assert math.isclose(slightly, 1e-4, rel_tol=0.01)
    with pytest.raises(ValueError, match="differs from the checkpoint's by 1 of the largest logit"):
        compare(torch.nn.Identity(), double, [images])
    with pytest.raises(ValueError, match="differs from the checkpoint's by nan"):
        compare(torch.nn.Identity(), lambda x: x * math.nan, [images])
    with pytest.raises(ValueError, match=r"fails on images \(1, 3, 4, 4\): .*matmul|fails on images"):
        compare(torch.nn.Identity(), lambda x: x @ torch.zeros(5, 5), [images])


def test_a_refused_export_leaves_no_file(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit) as caught:
        export_run(finished_run, tmp_path / "m.pt", "torchscript", "32x32")
    assert caught.value.code == 2
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["384", "0x384", "384x-1", "axb", "1x2x3", ""])
def test_a_size_that_is_none_is_refused_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["model.pth", "--format", "onnx", "--size", size])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"error: argument --size: '{size}': give height and width in pixels, such as 512x768, or 'dynamic'\n"
    )
