"""Checkpoints that are damaged or lie."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.faults.place import Case, Place

Act = Callable[[Place], str]
State = dict[str, Any]


def save(path: Path, state: State) -> Path:
    """A checkpoint with a digest that is right."""
    from models.saved import digest

    state.pop("digest", None)
    try:
        state["digest"] = digest(state)
    except ValueError:  # of what is only claimed
        state["digest"] = "0" * 64
    torch.save(state, path)
    return path


def saved(change: Callable[[State], object]) -> Callable[[Place], Path]:
    """A checkpoint of which something is changed."""

    def make(place: Place) -> Path:
        state = torch.load(place.checkpoint(), weights_only=True)
        change(state)
        return save(place.folder / "step_1.pth", state)

    return make


def photo(place: Place, name: str = "photo.png", side: int = 32) -> Path:
    """An image."""
    path = place.folder / "photos" / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 99, np.uint8)).save(path, "PNG")
    return path


def asked(tool: str, make: Callable[[Place], Path]) -> Act:
    """What a tool says of a checkpoint."""

    def act(place: Place) -> str:
        path = make(place)
        if tool == "predict":
            return judge(place.predict(photo(place), checkpoint=path))
        if tool == "main":
            return judge(place.main(f"init_from={path}", "task=[[ring, disc, star, cross], [triangle]]"))
        options = (
            ["--format", "torchscript", "--output", place.folder / "m"]
            if tool == "export"
            else ["--device", "cpu"]
        )
        return judge(place.tool(tool, path, *options))

    return act


def judge(answer: str) -> str:
    """An answer, and what it should not say."""
    found = [
        word for word in ("weights_only", "rerun its step", "[Errno", "WeightsUnpickler") if word in answer
    ]
    found += [f"{len(answer)} characters"] if len(answer) > 500 else []
    return f"{answer} [says {', '.join(found)}]" if found else answer


def set_field(name: str, value: Any) -> Callable[[State], object]:
    return lambda state: state.update({name: value})


def set_weight(value: float) -> Callable[[State], object]:
    def change(state: State) -> None:
        next(x for name, x in state["model"].items() if name.startswith("classifier")).view(-1)[0] = value

    return change


def expand(state: State) -> None:
    state["model"] = {name: torch.ones(1).expand(2**38) for name in state["model"]}


def in_config(section: str, field: str, value: Any) -> Callable[[State], object]:
    return lambda state: state["config"][section].update({field: value})


def cut(place: Place) -> Path:
    content = place.checkpoint().read_bytes()
    return place.write("step_1.pth", content[: len(content) // 2])


def flipped(place: Place) -> Path:
    content = bytearray(place.checkpoint().read_bytes())
    content[len(content) // 2] ^= 255
    return place.write("step_1.pth", bytes(content))


class Code:
    """What an unpickler of anything would call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def pickled(place: Place) -> Path:
    path = place.folder / "step_1.pth"
    torch.save({"model": Code()}, path)
    return path


def deflated(place: Place) -> Path:
    path = place.folder / "step_1.pth"
    with (
        zipfile.ZipFile(place.checkpoint()) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return path


def special(make: Callable[[Path], object]) -> Callable[[Place], Path]:
    def act(place: Place) -> Path:
        path = place.folder / "step_1.pth"
        make(path)
        return path

    return act


# Weights of a backbone


def pretrained(change: Callable[[State], object]) -> Act:
    def act(place: Place) -> str:
        import timm

        state = timm.create_model("test_resnet", pretrained=False).state_dict()
        change(state)
        torch.save(state, place.folder / "weights.pth")
        return place.main(f"model.pretrained={place.folder / 'weights.pth'}")

    return act


def deeper(state: State) -> None:
    for name in [name for name in state if name.startswith("layer4.0.")]:
        state[name.replace("layer4.0.", "layer4.7.")] = state[name].clone()


SCHEMA: list[tuple[str, Callable[[State], object], str]] = [
    ("num_classes [10^12]", set_field("num_classes", [10**12]), "num_classes.0: "),
    ("num_classes [-3, 2]", set_field("num_classes", [-3, 2]), "num_classes.0: "),
    ("num_classes [3.0, 2]", set_field("num_classes", [3.0, 2]), "num_classes.0: "),
    ("num_classes of 300 classes", set_field("num_classes", [200, 100]), "at most 255 are possible"),
    ("num_classes a text", set_field("num_classes", "32"), "num_classes: "),
    ("model a list", set_field("model", [1]), "model: "),
    ("a number among the weights", lambda s: s["model"].update(x=3), "model.x: "),
    ("a palette too short", set_field("palette", [[0, 0, 0]]), "palette: expected 5 entries"),
    ("a palette of numbers beyond 255", set_field("palette", [[0, 0, 999]] * 5), "palette.0.2: "),
    ("names too short", set_field("class_names", ["background"]), "class_names: expected 5 different names"),
    (
        "a name twice",
        set_field("class_names", ["a", "b", "c", "d", "d"]),
        "class_names: expected 5 different names",
    ),
    ("names that are numbers", set_field("class_names", [1, 2, 3, 4, 5]), "class_names.0: "),
    ("expanded tensors of 2^38 values", expand, "has too few values in the file"),
    ("a step that is a text", set_field("step", "1"), "step: "),
    ("a config that is a list", set_field("config", []), "config: "),
    (
        "a config nested 300 deep",
        lambda s: s["config"].update(json.loads('{"a":' * 300 + "1" + "}" * 300)),
        "exit 2",
    ),
    ("10^9 channels in the config", in_config("model", "channels", 10**9), "model.channels: "),
    ("a crop of 10^9 in the config", in_config("train", "crop_size", 10**9), "train.crop_size: "),
    ("a model that is not there", in_config("model", "name", "unet"), "'unet' is missing"),
    ("another backbone in the config", in_config("model", "backbone", "test_byobnet"), "does not fit"),
]
NOT_FINITE = "holds weights that are not finite"
CASES = [
    *(Case("checkpoint", name, asked("predict", saved(change)), told) for name, change, told in SCHEMA),
    *(
        Case("checkpoint", f"NaN, {tool}", asked(tool, saved(set_weight(float("nan")))), NOT_FINITE)
        for tool in ("predict", "evaluate", "export", "main")
    ),
    Case("checkpoint", "an infinity, predict", asked("predict", saved(set_weight(float("inf")))), NOT_FINITE),
    Case(
        "checkpoint",
        "cut in half",
        asked("predict", cut),
        "cut short, damaged, or no file of PyTorch's); get it anew",
    ),
    Case("checkpoint", "cut in half, evaluate", asked("evaluate", cut), "get it anew"),
    Case("checkpoint", "cut in half, as init_from", asked("main", cut), "get it anew"),
    Case("checkpoint", "a byte changed", asked("predict", flipped), "exit 2"),
    Case("checkpoint", "a pickle of code", asked("predict", pickled), "which could run code); get it anew"),
    Case("checkpoint", "a zip that is packed", asked("predict", deflated), "not a checkpoint of this code"),
    Case("checkpoint", "empty", asked("predict", special(Path.touch)), "not a readable checkpoint"),
    Case(
        "checkpoint",
        "a text",
        asked("predict", special(lambda p: p.write_text("hello"))),
        "not a readable checkpoint",
    ),
    Case("checkpoint", "a FIFO", asked("predict", special(os.mkfifo)), "is no regular file"),
    Case("checkpoint", "a folder", asked("predict", special(Path.mkdir)), "is no regular file"),
    Case(
        "checkpoint",
        "a circle of links",
        asked("predict", special(lambda p: p.symlink_to(p.name))),
        "no such checkpoint",
    ),
    Case(
        "pretrained",
        "of a deeper net of the family",
        pretrained(deeper),
        "holds weights that 'test_resnet' has not: layer4.7",
    ),
    Case(
        "pretrained",
        "NaN",
        pretrained(
            lambda s: (
                s["conv1.weight"].fill_(float("nan"))
                if "conv1.weight" in s
                else next(iter(s.values())).fill_(float("nan"))
            )
        ),
        "weights that are not finite",
    ),
    Case(
        "pretrained", "a weight of a stranger", pretrained(lambda s: s.update(x=torch.ones(1))), "has not: x"
    ),
    Case("pretrained", "as timm has them, head and all", pretrained(lambda s: None), "exit 0"),
]
