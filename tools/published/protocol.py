"""What of a run's protocol differs from that of a published row, and how much that weighs."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from datasets import DATASETS
from tools.published.registry import Recipe, Row
from tools.summary.runs import Run

WEIGHTS = {
    "backbone": 8,
    "decoder": 8,
    "setting": 8,
    "memory": 6,
    "images": 6,
    "class order": 4,
    "checkpoint": 3,
    "epochs": 2,
    "batch": 2,
    "recipe": 16,
}
"""How far a difference takes a row away from a run. What is not named weighs 1; what is not known there, half."""

IN_RECIPE = {
    "epochs": ("epochs_base", "train.num_epochs"),
    "incremental epochs": ("epochs_inc", "train.num_epochs_incremental"),
    "batch": ("batch_total", "train.batch_size"),
    "learning rate": ("lr_base", "train.lr_base"),
    "incremental learning rate": ("lr_inc", "train.lr_incremental"),
    "crop": ("crop", "train.crop_size"),
    "weight decay": ("weight_decay", "train.weight_decay"),
}
"""What numbers of a recipe are compared: aspect -> its column, and the field of the config."""

_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:e-?\d+)?")
BEST_OF_ALL = "best on all classes of the validation split, which is the test split"
BEST_OF_NEW = "best on the new classes of the validation split, which is the test split"


class Difference(NamedTuple):
    """An aspect of the protocol that differs; theirs is None where the sources do not say."""

    aspect: str
    theirs: str | None
    ours: str

    @property
    def weight(self) -> float:
        """How far it takes the row away."""
        weight = float(WEIGHTS.get(self.aspect, 1))
        return weight if self.theirs is not None else weight / 2


def nearness(differences: list[Difference]) -> float:
    """Return the sum of the differences' weights; 0 is the same protocol."""
    return sum(difference.weight for difference in differences)


def find_differences(run: Run, row: Row, recipe: Recipe | None) -> list[Difference]:
    """Return every aspect in which a run and a row differ, or may differ because the row's is not known."""
    found = [*_of_network(run, row), *_of_data(run, row)]
    if recipe is None:
        return [*found, Difference("recipe", None, "see its config.yaml")]
    return [*found, *_of_recipe(run, row, recipe)]


def _of_network(run: Run, row: Row) -> Iterator[Difference]:
    for aspect, theirs, field in (
        ("backbone", row.backbone, "model.backbone"),
        ("decoder", row.decoder, "model.name"),
    ):
        ours = str(run.fields.get(field, "unknown"))
        if theirs == "unknown":
            yield Difference(aspect, None, ours)
        elif not _same_name(ours, theirs):
            yield Difference(aspect, theirs, ours)


def _same_name(ours: str, theirs: str) -> bool:
    """Whether timm's name is a backbone of the registry: vit_base_patch16_384.augreg is vit_base."""
    plain = ours.partition(".")[0]
    return plain == theirs or (theirs.startswith("vit") and plain.startswith(f"{theirs}_"))


def _of_data(run: Run, row: Row) -> Iterator[Difference]:
    fields = run.fields
    memory = str(fields.get("memory.size", 0))
    if row.memory != memory:
        yield Difference("memory", f"{row.memory} images", f"{memory} images")
    if row.setting == "unknown":
        yield Difference("setting", None, fields["setting"])
    if row.setting == "domain":
        yield Difference("images", None, "a fifth of each city is validated on, chosen by ids")
    for field in ("data.train_ids", "data.val_ids"):
        if fields.get(field) is not None:
            yield Difference("images", "all of the split", f"those of {field} {fields[field]}")
    if fields.get("data.long_side") is not None:
        yield Difference("image size", "as they are", f"long side {fields['data.long_side']}")
    classes = DATASETS[row.dataset].classes if row.dataset in DATASETS else None
    if classes is not None and list(classes) != list(run.results["class_names"]):
        yield Difference("class order", "the data set's", "another")


def _of_recipe(run: Run, row: Row, recipe: Recipe) -> Iterator[Difference]:
    fields = dict(run.fields)
    if fields.get("train.num_epochs_incremental") is None:
        fields["train.num_epochs_incremental"] = fields.get("train.num_epochs")
    for aspect, (column, field) in IN_RECIPE.items():
        theirs, ours = recipe.text(column, row.dataset), fields.get(field)
        numbers = [float(number[0]) for part in theirs.split(" / ") if (number := _NUMBER.match(part))]
        if ours is None or float(ours) not in numbers:
            yield Difference(aspect, theirs if numbers else None, _plain(ours))
    for aspect, theirs_or_none, ours_text in (
        ("optimiser", _optimiser(recipe.texts["optimiser"]), _our_optimiser(fields)),
        ("schedule", _schedule(recipe.texts["schedule"]), _our_schedule(fields)),
        ("checkpoint", _checkpoint(recipe.texts["checkpoint"]), _our_checkpoint(fields)),
        ("evaluation", "center_crop", str(fields.get("evaluate.mode"))),
        ("weights", _weights(recipe.texts["backbone"]), _our_weights(fields)),
    ):
        if theirs_or_none != ours_text:
            yield Difference(aspect, theirs_or_none, ours_text)


def _optimiser(text: str) -> str | None:
    if text.startswith("SGD momentum 0.9 nesterov"):
        return "sgd 0.9 nesterov"
    return "adamw" if text.startswith("AdamW") else None


def _our_optimiser(fields: dict[str, Any]) -> str:
    if fields.get("train.optimizer") != "sgd":
        return str(fields.get("train.optimizer"))
    return f"sgd {fields.get('train.momentum')}" + (" nesterov" if fields.get("train.nesterov") else "")


def _schedule(text: str) -> str | None:
    named = {"poly": "poly", "constant": "constant", "as VOC": "constant", "warm": "warmup, then poly"}
    return next((name for start, name in named.items() if text.startswith(start)), None)


def _our_schedule(fields: dict[str, Any]) -> str:
    warmup = "warmup, then " if fields.get("train.warmup") else ""
    return warmup + str(fields.get("train.schedule"))


def _checkpoint(text: str) -> str | None:
    if text.startswith("last"):
        return "last"
    return BEST_OF_NEW if text.startswith("best") or "SSUL code base" in text else None


def _our_checkpoint(fields: dict[str, Any]) -> str:
    choice = str(fields.get("checkpoint"))
    return {"best_validation": BEST_OF_ALL, "best_validation_new": BEST_OF_NEW}.get(choice, choice)


def _weights(text: str) -> str | None:
    if "IABN" in text:
        return "ImageNet, in-place ABN"
    return "ImageNet, torchvision" if "torchvision" in text else None


def _our_weights(fields: dict[str, Any]) -> str:
    pretrained = fields.get("model.pretrained")
    if pretrained is True:
        torchvision = ".tv_" in str(fields.get("model.backbone"))
        return "ImageNet, torchvision" if torchvision else "timm's"
    return "none" if pretrained is False else str(pretrained)


def _plain(value: object) -> str:
    return "unknown" if value is None else str(value)
