"""A step's checkpoint as others may have it: smaller, without this machine's paths, with an entry and a model card."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import digest

DTYPES = {"float16": torch.float16, "float32": torch.float32}
PRIVATE = {
    ("output_dir",): "runs",
    ("data", "root"): "data_root",
    ("data", "train_ids"): None,
    ("data", "val_ids"): None,
    ("data", "image_lists"): None,
    ("data", "saliency"): None,
    ("data", "val_root_old"): None,
    ("logging", "wandb"): None,
    ("init_from",): None,
}
"""Fields that name places of this machine, and what stands there instead."""


def slim(checkpoint: Mapping[str, Any], dtype: torch.dtype) -> bytes:
    """Return the file of a checkpoint: weights as `dtype`, what a method counts and solves as it is.

    Checkpoints hold no optimiser. Raises ValueError where a weight is too large for the dtype.
    """
    content = dict(checkpoint)
    content["config"] = _without_places(checkpoint["config"])
    for part in ("model", "parts"):
        content[part] = {name: _cast(name, weight, dtype) for name, weight in checkpoint[part].items()}
    buffer = io.BytesIO()
    torch.save({**content, "digest": digest(content)}, buffer)
    return buffer.getvalue()


def _cast(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    if weight.dtype != torch.float32 or name.startswith("closed_form."):
        return weight
    cast = weight.to(dtype)
    if not torch.equal(cast.isfinite(), weight.isfinite()):
        raise ValueError(
            f"{name}: its largest value, {weight.abs().max():g}, is too large for float16; take --dtype float32"
        )
    return cast


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for path, value in PRIVATE.items():
        section = cleaned[path[0]] if len(path) > 1 else cleaned
        if path[-1] in section:
            section[path[-1]] = value
    if isinstance(cleaned["model"]["pretrained"], str):
        cleaned["model"]["pretrained"] = Path(cleaned["model"]["pretrained"]).name
    return cleaned


def make_entry(
    content: bytes, checkpoint: Mapping[str, Any], results: Mapping[str, Any], url: str, licence: str
) -> dict[str, Any]:
    """Return the entry of `docs/base_models.json` for a slim file."""
    config, step = _without_places(checkpoint["config"]), checkpoint["step"]
    entry = results["steps"][step]
    train, recipe = config["train"], {"method": config["method"], "seed": config["seed"]}
    return {
        "url": url,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "dataset": results["dataset"],
        "task": results["task"],
        "setting": results["setting"],
        "step": step,
        "classes": list(checkpoint["class_names"]),
        "order": config["class_order"],
        "backbone": config["model"]["backbone"],
        "model": config["model"],
        "recipe": {**recipe, **{name: value for name, value in train.items() if value is not None}},
        "evaluation": config["evaluate"],
        "figures": {
            "miou_all": entry["miou_all"],
            "miou_all_without_background": entry["without_background"]["miou_all"],
        },
        "train_images_sha256": entry.get("train_images_sha256"),
        "commit": results["commit"],
        "licence": licence or None,
    }


def format_card(name: str, entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return the model card, Markdown: task, data, recipe, protocol, figures per class, licence."""
    step = results["steps"][entry["step"]]
    figures = [
        f"| {class_name} | {'–' if iou is None else f'{100 * iou:.1f}'} |"
        for class_name, iou in step["per_class_iou"].items()
    ]
    recipe = "\n".join(f"- {key}: {value}" for key, value in entry["recipe"].items())
    evaluation = ", ".join(f"{key} {value}" for key, value in entry["evaluation"].items())
    return (
        f"""# {name}

A model after step {entry["step"]} of {entry["dataset"]} {entry["task"]} ({entry["setting"]}), to start from with
`--set init_from={name}` once its entry stands in docs/base_models.json, or with the path of the file.

- File: {entry["url"]}, {entry["bytes"]} bytes, SHA-256 `{entry["sha256"]}`
- Network: {", ".join(f"{key} {value}" for key, value in entry["model"].items())}
- Classes, in learning order: {", ".join(entry["classes"])}
- Class order: {entry["order"] or "the data set's, or that of the task's lists"}
- Data: {step["num_train_images"]} training images, SHA-256 of their ids {entry["train_images_sha256"] or "unknown"}
- Code: commit {entry["commit"] or "unknown"}, device {results["device"]}
- Licence of the weights: {entry["licence"] or "not stated; ask the publisher. The data set has a licence of its own"}

## Recipe

{recipe}

## Protocol and figures

Evaluated on {step["num_val_images"]} validation images: {evaluation}. Weights of the step: {step["checkpoint"]["by"]}.
IoU in percent; mean {_percent(entry["figures"]["miou_all"])} with background,
{_percent(entry["figures"]["miou_all_without_background"])} without.

| class | IoU |
|---|--:|
"""
        + "\n".join(figures)
        + "\n"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
