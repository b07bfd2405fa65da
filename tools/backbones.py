"""Try backbones of timm: a training step and an image of an odd size under a model; print a row of a table for each.

Without names: the tables of docs/backbones.md. Weights are random, nothing is fetched. Exit code 0: all fit, 2: some do
not.
"""

import argparse
import sys
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from models import MODELS, SegmentationModel, build_model
from models.backbone import possible_strides
from utils.arguments import new_parser

EXAMPLES = """
python -m tools.backbones
python -m tools.backbones convnext_tiny regnety_016
python -m tools.backbones eva02_tiny_patch14_224 --model segmenter
"""
TRIED = {
    "deeplabv3": {
        "resnet101": "the field's: `configs/voc.yaml`",
        "resnet50": "",
        "resnet18": "",
        "resnext101_32x8d": "",
        "regnety_016": "",
        "convnext_tiny": "",
        "convnext_base": "",
        "tf_efficientnet_lite0": "small and fast on a CPU: `configs/voc_animals.yaml`",
        "tf_efficientnetv2_s": "",
        "mobilenetv3_large_100": "small and fast on a CPU",
        "mobilenetv4_conv_small": "small and fast on a CPU",
        "densenet121": "",
        "hrnet_w18": "",
        "swin_tiny_patch4_window7_224": "",
        "swin_base_patch4_window7_224": "",
        "swin_base_patch4_window12_384": "the Swin-B of most papers: `configs/voc_swin_base.yaml`",
        "swinv2_tiny_window8_256": "",
        "pvt_v2_b2": "",
        "mambaout_tiny": "",
        "focalnet_tiny_srf": "",
        "mvitv2_tiny": "",
        "convformer_s18": "",
        "efficientvit_b1": "",
        "sam2_hiera_tiny": "the encoder of SAM 2",
        "vit_small_patch16_dinov3": "one scale only: Segmenter fits it better",
        "samvit_base_patch16": "the encoder of SAM; one scale only",
        "beit_base_patch16_224": "",
        "maxvit_tiny_tf_224": "",
        "inception_v3": "",
    },
    "segmenter": {
        "vit_base_patch16_384": "the paper's: `configs/voc_segmenter.yaml`",
        "vit_tiny_patch16_384": "",
        "deit3_base_patch16_384": "",
        "vit_base_patch16_clip_224": "CLIP",
        "vit_base_patch16_siglip_512": "SigLIP; no class token",
        "vit_small_patch14_reg4_dinov2": "DINOv2, four registers",
        "vit_base_patch16_dinov3": "rotary positions, four registers: `configs/voc_vit_base_dinov3.yaml`",
        "vit_small_patch16_dinov3": "",
        "eva02_tiny_patch14_224": "embedded and rotary positions",
        "eva02_base_patch14_448": "",
        "vit_base_patch16_rope_224": "rotary positions",
        "vit_pe_spatial_base_patch16_512": "Meta's Perception Encoder",
        "beit3_base_patch16_224": "",
        "beit_base_patch16_224": "relative positions of one image size",
        "vit_relpos_small_patch16_224": "relative positions of one image size",
        "samvit_base_patch16": "windows; DeepLabV3 takes it",
        "vit_base_r50_s16_224": "a hybrid: its patches are those of a ResNet",
        "swin_base_patch4_window7_224": "four scales; DeepLabV3 takes it",
    },
}
"""The rows of docs/backbones.md: a model, timm's name, a note."""
HEADERS = {
    "deeplabv3": ("backbone", "output strides", "parameters (M)", "note"),
    "segmenter": ("backbone", "patch", "parameters (M)", "note"),
}


def try_backbone(model_name: str, backbone: str) -> tuple[str, str]:
    """Train a model over a backbone for one update and let it see an image of an odd size.

    Returns its output strides or patch, and the backbone's parameters in millions, as texts. Raises ValueError saying
    why it does not fit.
    """
    options = {"name": model_name, "backbone": backbone, "pretrained": False}
    strides = [0]
    if model_name == "deeplabv3":
        strides = possible_strides(backbone)
        options["output_stride"] = strides[-1]
    torch.manual_seed(0)
    model = build_model(MODELS[model_name].Options.model_validate(options), [3], image_size=64)
    train_once(model)
    with torch.inference_mode():
        logits = model.eval()(torch.zeros(1, 3, 75, 51)).logits
    if logits.shape != (1, 3, 75, 51) or not logits.isfinite().all():
        raise ValueError(
            f"an image of 75 x 51 pixels has logits of shape {tuple(logits.shape)}, or not finite ones"
        )
    size = sum(p.numel() for p in model.backbone_parameters()) / 1e6
    told = ", ".join(map(str, strides)) if model_name == "deeplabv3" else str(model.cell)
    return told, f"{size:.1f}"


def train_once(model: SegmentationModel) -> None:
    """One update by cross-entropy of two images of 64 x 96 pixels; raises ValueError where a weight has no gradient."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (2, 64, 96), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = F.cross_entropy(model.train()(images).logits, labels)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    if without:
        raise ValueError(
            f"{len(without)} of its weights take no part in the output ({without[0]}, …), which ends a run of several "
            "processes"
        )
    optimizer.step()
    if not loss.isfinite() or not all(p.isfinite().all() for p in model.parameters()):
        raise ValueError("a weight is not finite after one update")


def rows(model_name: str, backbones: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return a row of Markdown for every backbone that fits, and one for every one that does not."""
    fit, unfit = [], []
    for backbone in backbones:
        note = TRIED[model_name].get(backbone, "")
        try:
            told, size = try_backbone(model_name, backbone)
        except ValueError as error:
            # The reason; what is possible instead is the page's own subject.
            reason = str(error).removeprefix("model.backbone: ").partition(". ")[0]
            reason = reason.removeprefix(f"'{backbone}' ")
            unfit.append(f"| `{backbone}` | {reason}{f': {note}' if note else ''} |")
        else:
            fit.append(f"| `{backbone}` | {told} | {size} | {note} |")
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return fit, unfit


def format_rows(model_name: str, fit: list[str], unfit: list[str]) -> str:
    """Return the tables of what fits a model and of what does not, as Markdown."""
    header = HEADERS[model_name]
    lines = []
    if fit:
        lines += [f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 2)}---|", *fit]
    if unfit:
        lines += ["", f"Not under `model.name: {model_name}`:", "", "| backbone | why |", "|---|---|", *unfit]
    return "\n".join(lines).strip("\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.backbones", __doc__, EXAMPLES)
    what = parser.add_argument_group("what to try")
    what.add_argument("names", nargs="*", metavar="NAME", help="timm's names; without any, those of the page")
    what.add_argument(
        "--model", choices=sorted(TRIED), default="deeplabv3", help="under which model (%(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Arguments → tables; returns the exit code."""
    args = make_parser().parse_args(argv)
    if args.names:
        fit, unfit = rows(args.model, args.names)
        print(format_rows(args.model, fit, unfit))
        return 2 if unfit else 0
    for name, backbones in TRIED.items():
        print(f"## {name}\n\n{format_rows(name, *rows(name, backbones))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
