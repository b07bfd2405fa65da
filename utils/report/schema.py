"""What results.json may hold, checked where it is read: scores are fractions, steps stand in order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.documents import load_json

Fraction = Annotated[float, Field(ge=0, le=1, strict=True)] | None
"""A score, or null where there is none. 17.0 is a percentage: edited by hand, or of other code."""


class StepResults(BaseModel):
    """One entry of `steps`; more is allowed."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    step: Annotated[int, Field(ge=0, strict=True)]
    new_classes: list[str] = []
    miou_all: Fraction = None
    miou_old: Fraction = None
    miou_new: Fraction = None
    miou_base: Fraction = None
    miou_incremental: Fraction = None
    hiou: Fraction = None
    forgetting: Annotated[float, Field(ge=-1, le=1, strict=True)] | None = None
    per_class_iou: dict[str, Fraction] = Field(min_length=1)
    without_background: dict[str, Fraction] = {}
    seconds: float = Field(0.0, ge=0, le=1e12)


class Results(BaseModel):
    """The whole of results.json; more is allowed."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    class_names: list[str] = Field(min_length=1)
    steps: list[StepResults]
    miou_avg: Fraction = None

    @model_validator(mode="after")
    def _steps_stand_in_order(self) -> "Results":
        known = 0
        for index, step in enumerate(self.steps):
            names = list(step.per_class_iou)
            if step.step != index:
                raise ValueError(f"steps.{index}: is of step {step.step}; steps stand in order, from 0")
            if names != self.class_names[: len(names)]:
                raise ValueError(
                    f"steps.{index}.per_class_iou: names other classes than class_names, or in another order"
                )
            if len(names) < known:
                raise ValueError(f"steps.{index}.per_class_iou: holds fewer classes than the step before")
            known = len(names)
        return self


def load_results(path: Path) -> dict[str, Any]:
    """Return results.json as it stands; raises OSError, or ValueError naming file and field."""
    content = load_json(path)
    try:
        check_results(content)
    except ValueError as error:
        raise ValueError(f"{path}: not the results of a run ({error})") from error
    found: dict[str, Any] = content
    return found


def check_results(content: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first fields that are not as results.json has them."""
    try:
        Results.model_validate(content)
    except ValidationError as error:
        told = []
        for detail in error.errors()[:3]:
            place = ".".join(map(str, detail["loc"]))
            found = "" if isinstance(detail["input"], dict | list) else f", found {detail['input']!r}"
            message = detail["msg"].removeprefix("Value error, ")
            told.append(f"{place}: {message}{found}" if place else message)
        raise ValueError("; ".join(told)) from error
