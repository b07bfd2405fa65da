"""A saved model: its file is read, checked and built from what it says of itself."""

import hashlib
import stat
import zipfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from torch import Tensor

from models.base import SegmentationModel
from models.build import MODELS, build_model

KEYS = {"model", "num_classes", "class_names", "step", "config", "parts", "method_state"}
"""What every checkpoint holds; the rest describes it."""
MAX_CLASSES = 255
RERUN = "delete it and rerun its step"
REPLACE = "get it anew, or give another"
"""What to do about a damaged file: of a run's own, and of any other."""

Byte = Annotated[StrictInt, Field(ge=0, le=255)]


def _is_whole(x: Tensor) -> Tensor:
    """A few bytes may claim to be a tensor of any size (expanded, sparse, on no device): none that is saved does."""
    if x.layout != torch.strided or x.is_meta or x.is_quantized:
        raise ValueError("a plain tensor is allowed only")
    if x.untyped_storage().nbytes() < x.numel() * x.element_size():
        raise ValueError(f"a tensor of shape {tuple(x.shape)} has too few values in the file")
    return x


Weight = Annotated[Tensor, AfterValidator(_is_whole)]


class Description(BaseModel):
    """What a checkpoint has to hold; more is allowed."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")

    model: dict[str, Weight]
    parts: dict[str, Weight]
    method_state: dict[str, Weight]
    num_classes: list[Annotated[StrictInt, Field(ge=1, le=MAX_CLASSES)]] = Field(min_length=1)
    class_names: list[Annotated[StrictStr, Field(min_length=1)]]
    palette: list[Annotated[list[Byte], Field(min_length=3, max_length=3)]] | None = None
    class_ids: list[Byte] | None = None
    described_by: list[StrictStr] | None = None
    step: StrictInt = Field(ge=0, le=MAX_CLASSES)
    config: dict[StrictStr, Any]

    @model_validator(mode="after")
    def _every_class_is_described(self) -> "Description":
        known = sum(self.num_classes)
        if known > MAX_CLASSES:
            raise ValueError(f"num_classes: {known} classes, at most {MAX_CLASSES} are possible")
        if len(set(self.class_names)) != known or len(self.class_names) != known:
            raise ValueError(f"class_names: expected {known} different names, found {len(self.class_names)}")
        for name in ("palette", "class_ids"):
            values = getattr(self, name)
            if values is not None and len(values) != known:
                raise ValueError(f"{name}: expected {known} entries, one a class, found {len(values)}")
        return self


class ModelInfo(NamedTuple):
    """What a checkpoint says of its model.

    class_names, palette (RGB, 0..255): by class id, background at 0; num_classes: classes of each step so far,
    background counted in the first; step: the last of them; config: the run's configuration, as plain values.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_classes: tuple[int, ...]
    step: int
    config: dict[str, Any]


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[SegmentationModel, ModelInfo]:
    """Return the model of a checkpoint, ready to predict (`eval`), and what is known of it.

    The model takes RGB pixel values 0..255 (B,3,H,W) of any dtype and size. Raises FileNotFoundError or ValueError
    naming the file.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    _check_finite(checkpoint, f"{path}: it")
    try:
        section = checkpoint["config"]["model"]
        options = MODELS[section["name"]].Options.model_validate({**section, "pretrained": False})
        crop_size = checkpoint["config"]["train"]["crop_size"]
        if not isinstance(crop_size, int) or not 1 <= crop_size < 2**15:
            raise ValueError(f"train.crop_size: expected pixels, found {crop_size!r}")
        model = build_model(options, checkpoint["num_classes"], crop_size)
        load_weights_of(checkpoint, model)
        info = ModelInfo(
            tuple(checkpoint["class_names"]),
            tuple((red, green, blue) for red, green, blue in checkpoint["palette"]),
            tuple(checkpoint["num_classes"]),
            checkpoint["step"],
            checkpoint["config"],
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        if isinstance(error, ValidationError):
            reason = _describe(error, "model.")
        raise ValueError(
            f"{path}: no model of this version of the code can be built from it: {reason}"
        ) from error
    return model.to(device).eval(), info


def load_weights_of(checkpoint: dict[str, Any], model: SegmentationModel) -> None:
    """Put a checkpoint's weights into a model; raises ValueError where they do not fit or are not finite."""
    where = f"the checkpoint of step {checkpoint['step']}"
    _check_finite(checkpoint, where)
    described_by = checkpoint.get("described_by")
    try:
        if described_by is not None:
            weights = checkpoint["model"]
            weight, bias = (weights[f"closed_form.{name}"] for name in ("weight", "bias"))
            model.solve_classes(described_by, weight, bias, weights.get("closed_form.expansion"))
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{where} does not fit the configured model: {reason}") from error


def _check_finite(checkpoint: dict[str, Any], where: str) -> None:
    """Raise ValueError for weights that are NaN or infinite: their model finds background everywhere."""
    broken = [name for name, x in checkpoint["model"].items() if not x.isfinite().all()]
    if broken:
        raise ValueError(
            f"{where} holds weights that are not finite ({', '.join(broken[:3])}), which tell nothing of an image; "
            "train it again"
        )


def load_checkpoint(path: Path, device: torch.device | str = "cpu", remedy: str = REPLACE) -> dict[str, Any]:
    """Read a checkpoint; no code in it is executed, and what it says of itself agrees.

    remedy: what to do about a damaged one. Raises FileNotFoundError or ValueError naming the file.
    """
    if not path.exists():
        told = "no such checkpoint; a run writes RUN/checkpoints/step_0.pth, step_1.pth, …"
        if remedy == RERUN:
            told = "the checkpoint is missing; restore it, or delete the later ones and rerun"
        raise FileNotFoundError(f"{path}: {told}")
    checkpoint = load_saved(path, device, remedy)
    missing = sorted(KEYS - checkpoint.keys())
    if missing and {"model", "config"} <= checkpoint.keys():
        raise ValueError(
            f"{path}: written by another version of this code (it lacks {', '.join(missing)}), which this one does not "
            "read; train it again, or use it with the version that wrote it: results.json of its run names the commit"
        )
    if missing:
        raise ValueError(f"{path}: not a checkpoint of this code, which holds {', '.join(sorted(KEYS))}")
    try:
        Description.model_validate(checkpoint)
    except ValidationError as error:
        raise ValueError(
            f"{path}: not what a checkpoint of this code says of itself ({_describe(error)}); {remedy}"
        ) from error
    return checkpoint


def load_saved(path: Path, device: torch.device | str = "cpu", remedy: str = REPLACE) -> dict[str, Any]:
    """Read what `save` has written and check its digest; raises ValueError naming a damaged or foreign file."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path}: is no regular file; give a checkpoint, RUN/checkpoints/step_N.pth")
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
        state = None if packed else torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a foreign or damaged pickle raises whatever its bytes happen to mean
        raise ValueError(f"{path}: not a readable checkpoint ({_reason(error)}); {remedy}") from error
    if not isinstance(state, dict) or "digest" not in state:
        raise ValueError(f"{path}: not a checkpoint of this code, which holds a digest; {remedy}")
    expected = state.pop("digest")
    try:
        found = digest(state)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error}); {remedy}") from error
    if found != expected:
        raise ValueError(f"{path}: damaged, its contents are not those that were saved; {remedy}")
    return state


def _reason(error: Exception) -> str:
    """Why torch does not read a file. Its own words advise to let the file run code."""
    if isinstance(error, OSError) and not isinstance(error, zipfile.BadZipFile) and error.strerror:
        return error.strerror
    if "weights_only" in str(error) or "Unsupported" in str(error):
        return "it holds more than tensors and plain values, which could run code"
    return "it is cut short, damaged, or no file of PyTorch's"


def _describe(error: ValidationError, prefix: str = "") -> str:
    """The first things that pydantic has found, in a line."""
    found = []
    for detail in error.errors()[:3]:
        place = prefix + ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Value error, ")
        found.append(f"{place}: {message}" if detail["loc"] else message)
    return "; ".join(found)


def digest(value: Any) -> str:
    """Return the SHA-256 of tensors and plain values, nested in dicts, lists and tuples; what the zip of
    `torch.save` holds is not checked when it is read. Raises ValueError for a tensor that only claims its values."""
    sha = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, Tensor):
            _is_whole(value)
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            # Bytes, as numpy has no bfloat16.
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            sha.update(f"dict{len(value)}".encode())
            for key, item in value.items():
                feed(key)
                feed(item)
        elif isinstance(value, list | tuple):
            sha.update(f"list{len(value)}".encode())
            for item in value:
                feed(item)
        else:
            sha.update(f"{type(value).__name__}{value!r}".encode())

    feed(value)
    return sha.hexdigest()
