"""tools/export.py: the exported model says what the model says, and describes itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import load_model
from tools import export
from tools.export import compare, main

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


@torch.no_grad()
def test_pt2_of_one_size_takes_batches_of_any_size(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    model, _ = load_model(export_run(finished_run, path, "pt2", "40x56"))
    extra = {"metadata.json": ""}
    exported = torch.export.load(path, extra_files=extra).module()
    for count in (1, 3):
        images = draw(count, 3, 40, 56)
        torch.testing.assert_close(exported(images), model(images).logits)
    assert json.loads(json.loads(extra["metadata.json"])["size"]) == [40, 56]


@torch.no_grad()
def test_onnx_runs_in_onnxruntime_and_names_its_classes(finished_run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "m.onnx"
    model, _ = load_model(export_run(finished_run, path, "onnx", "40x56"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("images", ["batch", 3, 40, 56])]
    images = draw(2, 3, 40, 56)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images).logits, rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == CLASSES


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


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_dynamic_size_is_refused_where_torch_cannot_do_it(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        export_run(finished_run, tmp_path / "m", form, "dynamic")
    assert caught.value.code == 2
    assert "--size dynamic: found model deeplabv3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
