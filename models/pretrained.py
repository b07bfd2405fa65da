"""Weights from files: state dicts of timm, torchvision, and of the codebases of the field, by timm's names."""

import logging
import re
import sys
from collections.abc import Collection
from pathlib import Path

import timm
import torch
from timm.models import clean_state_dict, load_state_dict
from torch import Tensor, nn

Weights = dict[str, Tensor]
logger = logging.getLogger(__name__)

WRAPPERS = ("model_state", "model_state_dict")
"""Keys below which codebases of the field keep a state dict, beside those that timm knows."""
HEADS = ("fc.", "head.", "classifier.", "pre_logits.")
"""What a classification network has behind its backbone."""
IABN_EPS = 1e-5
MAX_NAMED = 3


def load_weights(backbone: nn.Module, name: str, path: str) -> None:
    """Load a state dict into the backbone of timm's model `name`.

    Names may be those of timm or torchvision (which are the same for ResNets), those that timm knows to convert (such
    as of Swin's or DINOv3's authors), with `module.` before them (DDP), with `backbone.` (a segmentation network of
    torchvision), of MiB's in-place ABN ResNets, or of the authors' Segmenter. What timm's model has beyond the
    backbone, such as the head, is left out.

    Raises ValueError naming the file where it cannot be read, and weights that it lacks, has in another shape, has
    beyond those of timm's model, or that are not finite.
    """
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False)
    weights = backbone_weights(read_weights(path, name))
    try:
        weights = _timm_weights(weights, backbone, whole)
    except Exception as error:  # timm's filters reshape what they expect
        raise _unfit(path, name, _first_line(error)) from error
    # A feature extractor may keep the model in a module of its own, or flatten its names.
    names = {flat(key.removeprefix("model.")): key for key in backbone.state_dict()}
    _load(backbone, {names.get(flat(key), key): tensor for key, tensor in weights.items()}, path, name)
    known = {*names, *(flat(key) for key in whole.state_dict())}
    if unknown := [x for x in weights if flat(x) not in known and not x.startswith(HEADS)]:
        raise ValueError(
            f"model.pretrained: '{path}' holds weights that '{name}' has not: {_name(unknown)}; it is of another "
            "model, perhaps a deeper one: name that one in model.backbone, or give the right file"
        )


def _timm_weights(weights: Weights, backbone: nn.Module, whole: nn.Module) -> Weights:
    """Weights by timm's names and in the backbone's sizes, as timm converts them where it fetches them itself."""
    for model in (backbone, whole):  # a ViT is its own backbone, in its own size
        module = sys.modules[type(model).__module__]
        if convert := getattr(module, "checkpoint_filter_fn", None):
            converted: Weights = convert(weights, model)
            return converted
    return weights


def flat(key: str) -> str:
    """A name that all forms of a model share: stages.0 of timm's is stages_0 in some of its feature extractors."""
    return key.replace(".", "_")


def load_decoder(decoder: nn.Module, path: str) -> None:
    """Load the decoder of the authors' Segmenter into a mask transformer; nothing where the file has no such weights.

    The tokens and norms of its classes are left out, which is logged: classes are the task's. Raises ValueError as
    `load_weights` does.
    """
    weights = {
        name.removeprefix("decoder."): weight
        for name, weight in read_weights(path, "segmenter").items()
        if name.startswith("decoder.")
    }
    if not weights:
        return
    renamed = {_decoder_name(name): weight for name, weight in weights.items()}
    for name in ("project_patches.weight", "project_classes.weight"):
        if name in renamed:  # the authors multiply from the right
            renamed[name] = renamed[name].T
    _load(decoder, renamed, path, "the decoder of segmenter")
    own = decoder.state_dict().keys()
    _tell_unused(path, [f"decoder.{name}" for name in weights if _decoder_name(name) not in own])


def read_weights(path: str, name: str) -> Weights:
    """Return the state dict of a file without the prefix of DDP; no code in the file is executed."""
    if not Path(path).is_file():
        raise ValueError(f"model.pretrained: no file '{path}'; give the path of a state dict, true or false")
    try:
        weights = load_state_dict(path, weights_only=True)  # older versions of timm would run code in it
        for key in WRAPPERS:
            if isinstance(weights.get(key), dict):
                weights = clean_state_dict(weights[key])
        return {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    except Exception as error:  # torch's own words advise to let the file run code
        raise _unfit(path, name, "it is damaged, or no file of weights alone") from error


def backbone_weights(weights: Weights) -> Weights:
    """Return the weights of the backbone by timm's names, whatever codebase wrote them."""
    if any(name.startswith("encoder.blocks.") for name in weights):
        return _below("encoder.", weights)
    for prefix in ("backbone.", "body."):
        if any(name.startswith(prefix) for name in weights):
            weights = _below(prefix, weights)
    return _from_iabn(weights) if any(name.startswith("mod1.") for name in weights) else weights


def _below(prefix: str, weights: Weights) -> Weights:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def _from_iabn(weights: Weights) -> Weights:
    """Weights of MiB's ResNets with in-place ABN: mod2.block1.convs.bn1 is layer1.0.bn1.

    In-place ABN scales by |γ| + eps, whatever the sign of the γ that it stores.
    """
    return {
        _timm_name(name): weight.abs() + IABN_EPS if re.search(r"bn\d?\.weight$", name) else weight
        for name, weight in weights.items()
    }


def _timm_name(name: str) -> str:
    match = re.fullmatch(r"mod(\d+)\.block(\d+)\.(convs\.|proj_)(\w+)\.(\w+)", name)
    if match is None:
        return name.removeprefix("mod1.")
    module, block, kind, layer, weight = match.groups()
    if kind == "proj_":
        layer = {"conv": "downsample.0", "bn": "downsample.1"}.get(layer, layer)
    return f"layer{int(module) - 1}.{int(block) - 1}.{layer}.{weight}"


def _decoder_name(name: str) -> str:
    """Name of one of the authors' decoder weights here."""
    renamed = {
        "proj_dec.": "embed.",
        "decoder_norm.": "norm.",
        "proj_patch": "project_patches.weight",
        "proj_classes": "project_classes.weight",
    }
    for theirs, ours in renamed.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs) if theirs.endswith(".") else ours
    return name


def _load(module: nn.Module, weights: Weights, path: str, what: str) -> None:
    """Load the weights that a module has; raises ValueError listing those that are missing or of another shape."""
    own = module.state_dict()
    missing = [x for x in own if x not in weights and not x.endswith("num_batches_tracked")]
    other = [
        f"{x} of shape {tuple(weights[x].shape)}, here {tuple(tensor.shape)}"
        for x, tensor in own.items()
        if x in weights and weights[x].shape != tensor.shape
    ]
    problems = [f"it lacks {_name(missing)}"] * bool(missing) + [f"it has {_name(other)}"] * bool(other)
    if problems:
        raise _unfit(path, what, "; ".join(problems))
    if broken := [x for x in own if x in weights and not weights[x].isfinite().all()]:
        raise ValueError(
            f"model.pretrained: '{path}' holds weights that are not finite: {_name(broken)}; get the file anew"
        )
    module.load_state_dict({x: weights[x] for x in own if x in weights}, strict=False)


def _tell_unused(path: str, names: Collection[str]) -> None:
    if names:
        logger.warning(
            "model.pretrained: '%s': %d weights are not used: %s", path, len(names), ", ".join(names)
        )


def _unfit(path: str, what: str, reason: str) -> ValueError:
    if not what.startswith("the "):
        what = f"'{what}'"
    return ValueError(f"model.pretrained: '{path}' does not hold weights of {what}: {reason}")


def _name(names: list[str]) -> str:
    more = f" … ({len(names)} in all)" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
