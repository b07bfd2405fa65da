"""MBS and its mask transformer beside what the authors' released code gives for the same inputs."""

from typing import cast

import torch

from methods import Output
from models import Segmenter
from models.output import upsample
from models.segmenter import MaskTransformer
from tests.support.beside import (
    Arrays,
    Compared,
    Pair,
    cast_inputs,
    gradients,
    loss_terms,
    method_of,
    output_of,
)
from tests.support.golden import patches_to_map

TERMS = (
    "cross_entropy",
    "feature_distillation",
    "embedding_distillation",
    "output_distillation",
    "orthogonal",
)


def mbs_step(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, labels = cast_inputs(arrays, dtype), arrays["in_labels"]
    output = output_of(
        x["logits"],
        features=patches_to_map(x["patches"]),
        class_tokens=x["class_tokens"],
        class_embeddings=x["class_embeddings"],
    )
    old = output_of(
        x["old_logits"],
        grid_logits=x["old_grid_logits"],
        features=patches_to_map(x["old_patches"]),
        class_embeddings=x["old_class_embeddings"],
    )
    weights = {"threshold": arrays["const_threshold"].item(), "output_weight": arrays["const_lambda"].item()}
    method = method_of("mbs", arrays, **weights)
    targets = method.targets(labels, cast(Output, old))
    terms = loss_terms(method, labels, output, old)
    assert set(terms) == set(TERMS)
    total = torch.stack(list(terms.values())).sum()
    compared = {
        "pseudo-labels": Pair(targets.pseudo_labels, arrays["out_pseudo_labels"]),
        "weights of cells": Pair(targets.own["cells"].flatten(1), arrays["out_feature_weights"]),
        **{name.replace("_", " "): Pair(terms[name], arrays[f"out_{name}"]) for name in TERMS},
        "total": Pair(total, arrays["out_total"]),
    }
    for name, gradient in gradients(total, x, ["logits", "patches", "class_embeddings", "class_tokens"]):
        compared[f"total: gradient, {name}"] = Pair(gradient, arrays[f"out_grad_total_{name}"])
    return compared


def mbs_decoder(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, sizes = cast_inputs(arrays, dtype), arrays["const_classes_per_step"].tolist()
    patches, num_heads = x["encoder_patches"], int(arrays["const_heads"])
    channels = arrays["in_param_classifier.tokens.0"].shape[1]
    options = Segmenter.Options(
        backbone="test_vit", pretrained=False, patch_size=8, channels=channels, num_heads=num_heads
    )
    model = Segmenter(sizes, options, 32)
    model.decoder = MaskTransformer(patches.shape[2], channels, 2, num_heads, drop_path=0.1)
    weights = {
        name.removeprefix("in_param_"): y for name, y in arrays.items() if name.startswith("in_param_")
    }
    problems = model.load_state_dict(weights, strict=False)
    assert not problems.unexpected_keys
    assert all(name.startswith(("backbone.", "pixel_")) for name in problems.missing_keys)
    model.to(dtype).eval()
    features, embeddings = model._decode(patches_to_map(patches))
    grid_logits = model._masks(features, embeddings)
    scalar = (x["cotangent"] * grid_logits).sum()
    compared = {
        "grid logits": Pair(grid_logits, arrays["out_grid_logits"]),
        "projected patches": Pair(features.flatten(2).transpose(1, 2), arrays["out_projected_patches"]),
        "class embeddings": Pair(embeddings, arrays["out_class_embeddings"]),
        "logits, upsampled": Pair(upsample(grid_logits, torch.Size((16, 16))), arrays["out_logits_16x"]),
    }
    tokens = torch.autograd.grad(scalar, list(model.classifier.tokens), retain_graph=True)
    compared["grid logits: gradient, class tokens"] = Pair(torch.cat(tokens), arrays["out_grad_class_tokens"])
    for name, gradient in gradients(scalar, x, ["encoder_patches"]):
        compared[f"grid logits: gradient, {name}"] = Pair(gradient, arrays[f"out_grad_{name}"])
    return compared
