"""What a config that a run has stored says beside the one that is given now."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainer.config import Config
from utils.config.fields import differing_fields as compare
from utils.config.read import describe_errors

MAY_DIFFER = (
    "log",
    "variant",
    "output_dir",
    "data.num_workers",
    "data.on_error",
    "data.max_skipped",
    "save_every",
    "distributed",
    "logging",
)
"""Fields (or sections) that cannot change a result: a run may be continued with other values. `data.on_error` is among
them, so that a run that ended at an unreadable file can go on."""

INCREMENTAL_ONLY = (
    "method",
    "init_from",
    "memory",
    "data.train_on",
    "model.background_residuals",
    "train.num_epochs_incremental",
    "train.lr_incremental",
    "train.lr_classifier_incremental",
    "train.lr_background_factor",
    "train.freeze_bn",
    "train.freeze_dropout",
    "train.freeze_extractor",
    "train.weight_decay_on",
    "train.freeze_old_classes",
    "train.fuse_old_weights",
)
"""Fields (or sections) that do not reach the weights of the base step. What a method does to them follows from its
`base_step`."""


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return 'field: theirs → ours' for every field that may change a result and differs."""
    return compare(ours, theirs, MAY_DIFFER)


def describe_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Say why a run whose stored configuration is `theirs` is none of `ours`; '' where results cannot differ."""
    differing = differing_fields(ours, with_defaults(theirs))
    foreign = foreign_fields(theirs)
    if differing and foreign:
        return (
            f"holds a run of another version of this code, whose config this one does not read ({', '.join(foreign)}); "
            "its results.json names the commit"
        )
    return f"holds a run with another config ({'; '.join(differing)}, there → here)" if differing else ""


def foreign_fields(values: Mapping[str, Any]) -> list[str]:
    """Return the fields of a stored configuration that this code does not know or allow."""
    try:
        Config.model_validate(values)
    except ValidationError as error:
        return list(dict.fromkeys(field for field, _ in describe_errors(error, Config, str)))
    return []


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the defaults of fields that are younger than it."""
    try:
        return Config.model_validate(values).model_dump(mode="json")
    except ValidationError:  # a field has changed its name or its range since
        return dict(values)
