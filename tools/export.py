"""Export a trained model to ONNX, TorchScript or torch.export.

The exported model takes `images` (B,3,H,W), float32 RGB values 0..255 (it normalises inside), and gives `logits`
(B,K,H,W); the class of a pixel is their argmax. Before the file gets its name its logits are compared with the model's
own, on random images and on a real one. Class names and palette lie in its metadata, as JSON. A batch is of any size.
A file that is there already is replaced with --overwrite only. Exit code 2: an error to mend, and no new file.
"""

import argparse
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm.layers.padding
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.file_dataset import read_image
from models import ModelInfo, SegmentationModel, load_model
from trainer.config import Config, make_config
from trainer.data import open_split
from utils.arguments import add_checkpoint, add_overwrite, fail, new_parser, to_path
from utils.errors import explain
from utils.files import check_output, write_atomic
from utils.units import format_size

EXAMPLES = """
python -m tools.export runs/demo/checkpoints/step_2.pth --format onnx --size 384x512
python -m tools.export runs/demo/checkpoints/step_2.pth --format pt2 --size dynamic --image street.jpg
"""
SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "pt2": ".pt2"}
TOLERANCE = 1e-3
"""Largest difference of two logits, as a share of the largest logit: kernels of other libraries round differently."""

CONV2D_SAME = import_module("timm.layers.conv2d_same")
"""The module: as an attribute of timm.layers, the name is the function's."""
_conv2d_same = CONV2D_SAME.conv2d_same

Run = Callable[[Tensor], Tensor]
Size = tuple[int, int] | None
"""(height, width), None for dynamic."""


class Logits(nn.Module):
    """Images to logits at image size."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def example_images(size: Size, side: int) -> Tensor:
    """Return random images (B,3,H,W), the sides near `side` where the size is dynamic."""
    # A batch of two: torch would take one of a single image for the rule.
    return torch.rand(2, 3, *(size or (side, side + 32))) * 255


def export_program(module: nn.Module, size: Size, side: int) -> torch.export.ExportedProgram:
    """Trace the model for batches of any size, of images of one size or, where `size` is None, of any above a patch."""
    free = (0, 2, 3) if size is None else (0,)
    shapes = {"images": dict.fromkeys(free, torch.export.Dim.DYNAMIC)}
    with (
        patch.object(timm.layers.padding, "get_same_padding", same_padding),
        patch.object(CONV2D_SAME, "conv2d_same", convolve_same),
    ):
        return torch.export.export(module, (example_images(size, side),), dynamic_shapes=shapes)


def same_padding(side: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return what TensorFlow's 'same' padding adds to a side, by a remainder.

    timm's own form takes the ceiling of a quotient, which torch cannot store where sides are symbols.
    """
    return max((kernel_size - 1) * dilation + 1 - stride + -side % stride, 0)


def convolve_same(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], *arguments: Any
) -> Tensor:
    """Convolve (B,C,H,W) as timm's `tf_` backbones do, and say outright that a side becomes ceil(side / stride).

    Where sides are symbols, every such layer makes them longer otherwise, until torch takes minutes over them.
    """
    y = _conv2d_same(x, weight, bias, stride, *arguments)
    height, width = ((side + step - 1) // step for side, step in zip(x.shape[2:], stride, strict=True))
    return y.narrow(2, 0, height).narrow(3, 0, width)


def export_onnx(module: nn.Module, size: Size, side: int, metadata: dict[str, str]) -> tuple[bytes, Run]:
    """Return an ONNX file and how onnxruntime runs it; raises ImportError where its libraries are missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says so less clearly
    except ImportError as error:
        raise ImportError(
            f"--format onnx needs onnx, onnxscript and onnxruntime ({error}): `pip install onnx onnxscript onnxruntime`"
        ) from error
    program = torch.onnx.export(
        export_program(module, size, side), input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    proto = program.model_proto
    names = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for dim, name in names.items():
            value.type.tensor_type.shape.dim[dim].dim_param = name
    onnx.helper.set_model_props(proto, metadata)
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def export_torchscript(
    module: nn.Module, size: Size, side: int, metadata: dict[str, str]
) -> tuple[bytes, Run]:
    """Return a traced TorchScript file and how it runs."""
    traced, file = torch.jit.trace(module, example_images(size, side)), io.BytesIO()
    torch.jit.save(traced, file, _extra_files={"metadata.json": json.dumps(metadata)})
    content = file.getvalue()
    return content, torch.jit.load(io.BytesIO(content), map_location="cpu")


def export_pt2(module: nn.Module, size: Size, side: int, metadata: dict[str, str]) -> tuple[bytes, Run]:
    """Return what torch.export.load reads and how it runs."""
    program, file = export_program(module, size, side), io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    content = file.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


EXPORT = {"onnx": export_onnx, "torchscript": export_torchscript, "pt2": export_pt2}


def describe_model(info: ModelInfo, size: Size) -> dict[str, str]:
    """The metadata; all but the format of the images are JSON."""
    return {
        "class_names": json.dumps(info.class_names, ensure_ascii=False),
        "palette": json.dumps(info.palette),
        "num_classes": json.dumps(info.num_classes),
        "step": json.dumps(info.step),
        "size": json.dumps(size or "dynamic"),
        "config": json.dumps(info.config, ensure_ascii=False),
        "images": "float32 (B,3,H,W), RGB, 0..255, normalised inside",
    }


def comparison_images(config: Config, size: Size, image: Path | None) -> tuple[list[Tensor], str]:
    """Return batches to compare on, and what they are: random ones, and the real image or a validation image.

    Raises DataError or OSError for an `image` that cannot be read.
    """
    side = config.train.crop_size
    sizes = [size, size] if size else [(side, side), (side + 37, 2 * side + 11)]
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.rand(count, 3, *shape, generator=generator) * 255
        for count, shape in zip((1, 3), sizes, strict=True)
    ]
    if image is not None:
        pixels, name = read_image(image), str(image)
    else:
        try:
            val = open_split(config, "val")
            pixels, name = val.read(val.ids[0])[0], f"{config.data.name} val {val.ids[0]}"
        except (ValueError, OSError, ImportError) as error:
            return batches, f"random images only (no real one: {explain(error)}; --image FILE takes one)"
    real = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    return [
        *batches,
        F.interpolate(real, sizes[1], mode="bilinear", antialias=True),
    ], f"random images and {name}"


def compare(module: nn.Module, run: Run, batches: Sequence[Tensor]) -> float:
    """Return the largest difference of logits, as a share of the largest logit; raises ValueError above TOLERANCE."""
    differences = []
    for images in batches:
        try:
            ours, theirs = module(images), run(images)
        except Exception as error:  # each runtime has errors of its own
            reason = " ".join(str(error).split())[-300:]
            raise ValueError(f"the exported model fails on images {tuple(images.shape)}: {reason}") from error
        if ours.shape != theirs.shape:
            raise ValueError(
                f"the exported model gives {tuple(theirs.shape)} where {tuple(ours.shape)} is right"
            )
        differences.append((ours - theirs).abs().max() / ours.abs().max())
    # Not the built-in max, which passes over nan.
    worst = float(torch.stack(differences).max())
    if not worst <= TOLERANCE:
        raise ValueError(
            f"the exported model differs from the checkpoint's by {worst:.2g} of the largest logit, allowed is "
            f"{TOLERANCE}; nothing was written. With --size dynamic, try --size HxW"
        )
    return worst


@torch.no_grad()
def run(args: argparse.Namespace) -> str:
    """Export as the command line says; returns what was written and how far it is from the model."""
    output = args.output or args.checkpoint.with_suffix(SUFFIXES[args.format])
    inputs = [path for path in (args.checkpoint, args.image) if path is not None]
    check_output("--output", output, inputs, args.overwrite)
    model, info = load_model(args.checkpoint)
    config = make_config(info.config, args.checkpoint)
    side = config.train.crop_size
    size: Size = None if args.size == "dynamic" else args.size or (side, side)
    if size is None and args.format == "torchscript" and config.model.name == "segmenter":
        raise ValueError(
            "--size dynamic: a TorchScript trace of a segmenter keeps the number of patches, and so the position "
            "embeddings, of the image that it was traced with; give --size HxW, or take --format onnx or pt2"
        )
    batches, what = comparison_images(config, size, args.image)
    module = Logits(model)
    # In memory until it is known to be right: torch's own writers end the process where a disk is full.
    try:
        content, exported = EXPORT[args.format](module, size, side, describe_model(info, size))
    except (ImportError, OSError):
        raise
    except Exception as error:  # the exporters have no error class of their own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"--format {args.format}: torch cannot export this model ({type(error).__name__}: {reason}); try "
            "another --format, or --size HxW"
        ) from error
    difference = compare(module, exported, batches)
    write_atomic(output, content)
    return f"{output}: {format_size(output.stat().st_size)}, differs by {difference:.1e} of the largest logit on {what}"


def parse_size(text: str) -> tuple[int, int] | str:
    """Read HxW or 'dynamic'; raises ArgumentTypeError."""
    if text == "dynamic":
        return text
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if sides is None:
        raise argparse.ArgumentTypeError(
            f"'{text}': give height and width in pixels, such as 512x768, or 'dynamic'"
        )
    return int(sides[1]), int(sides[2])


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.export", __doc__, EXAMPLES)
    what = parser.add_argument_group("input and output")
    add_checkpoint(what)
    what.add_argument("--format", choices=list(EXPORT), required=True, help="pt2 is that of torch.export")
    what.add_argument(
        "--output", type=to_path, metavar="FILE", help="default: beside the checkpoint, under its name"
    )
    add_overwrite(what)
    how = parser.add_argument_group("what it takes")
    how.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW|dynamic",
        help="height and width of the images, or images of any size; default: the training crop",
    )
    how.add_argument(
        "--image", type=to_path, metavar="FILE", help="real image to compare on; default: a validation image"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    # What the exporters say of their own inside is of no use here.
    warnings.filterwarnings("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        print(run(args))
    except (ValueError, OSError, ImportError) as error:
        fail(parser, error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
