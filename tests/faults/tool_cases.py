"""Inputs of tools that cannot be read, and outputs that would replace something."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from tests.faults.checkpoint_cases import Act, State, judge, photo
from tests.faults.data_cases import bomb, png
from tests.faults.place import Case, Place

# Outputs


def export_onto(make: Callable[[Place, Path], Path], *options: str) -> Act:
    """What is exported to a path; told is whether the checkpoint still is what it was."""

    def act(place: Place) -> str:
        path = Path(shutil.copy(place.checkpoint(), place.folder / "step_1.pth"))
        before = path.read_bytes()
        output = str(make(place, path))
        arguments = ["--format", "torchscript", "--size", "16x16", "--output", output]
        answer = place.tool("export", path, *arguments, *options)
        intact = path.exists() and path.read_bytes() == before
        return f"{answer}; checkpoint {'intact' if intact else 'lost'}"

    return act


def hard_link(place: Place, path: Path) -> Path:
    os.link(path, place.folder / "m.pt")
    return place.folder / "m.pt"


def symbolic_link(place: Place, path: Path) -> Path:
    (place.folder / "m.pt").symlink_to(path)
    return place.folder / "m.pt"


def export_on_full_disk(place: Place) -> str:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        output = str(place.folder / "out" / "m.pt")
        arguments = ["--format", "torchscript", "--size", "16x16", "--output", output]
        answer = place.tool("export", place.checkpoint(), *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    left = sorted(path.name for path in (place.folder / "out").iterdir())
    return f"{answer}; left: {', '.join(left) or 'nothing'}"


def evaluate_json(onto: str, *options: str) -> Act:
    def act(place: Place) -> str:
        path = Path(shutil.copy(place.checkpoint(), place.folder / "step_1.pth"))
        target = place.folder / onto
        if not target.exists():
            target.write_text("mine")
        before = target.read_bytes()
        answer = place.tool("evaluate", path, "--device", "cpu", "--json", target, *options)
        return f"{answer[:90]}; {onto} {'intact' if target.read_bytes() == before else 'replaced'}"

    return act


def predict_twice(*options: str) -> Act:
    def act(place: Place) -> str:
        path = photo(place)
        place.predict(path)
        return place.predict(path, options=options)

    return act


# Images


def predict_all_but(spoil: Callable[[Path], object]) -> Act:
    """A good image and a bad one."""

    def act(place: Place) -> str:
        photos = photo(place).parent
        spoil(photos)
        answer = place.predict(photos)
        listed = place.folder / "out" / "predictions.json"
        count = len(json.loads(listed.read_text())["images"]) if listed.exists() else "no"
        return f"{answer}; {count} listed"

    return act


def longest_name(photos: Path) -> None:
    shutil.copy(photos / "photo.png", photos / ("n" * 251 + ".png"))


def not_utf8(photos: Path) -> None:
    shutil.copy(photos / "photo.png", os.fsdecode(os.fsencode(photos) + b"/\xff.png"))


def no_memory(place: Place) -> str:
    """One image of two that the model cannot hold in the memory."""
    from models import DeepLabV3

    forward = DeepLabV3.forward

    def failing(model: DeepLabV3, images: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if images.shape[2] != images.shape[3]:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
            )
        return forward(model, images, *arguments, **options)

    def wide(photos: Path) -> None:
        Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(photos / "wide.png")

    with patch.object(DeepLabV3, "forward", failing):
        return predict_all_but(wide)(place)


# Results


def results(change: Callable[[State], object], tool: str, *options: str) -> Act:
    def act(place: Place) -> str:
        run = place.run()
        content = json.loads((run / "results.json").read_text())
        change(content)
        (run / "results.json").write_text(json.dumps(content))
        return judge(place.tool(tool, run, *options))

    return act


def raw_results(text: str, tool: str) -> Act:
    def act(place: Place) -> str:
        run = place.run()
        (run / "results.json").write_text(text)
        return judge(place.tool(tool, run))

    return act


def in_run(name: str, make: Callable[[Path], object], tool: str) -> Act:
    def act(place: Place) -> str:
        path = place.run() / name
        path.unlink()
        make(path)
        return judge(place.tool(tool, path.parent))

    return act


def in_step(index: int, **fields: Any) -> Callable[[State], object]:
    return lambda content: content["steps"][index].update(fields)


def reverse(content: State) -> None:
    content["steps"].reverse()


def hostile_names(place: Place) -> str:
    """A class that is HTML, through training, into the tables."""
    from tests.support.results import make_results
    from utils.report.tables import format_markdown

    made = make_results(["background", "<img src=x onerror=alert(1)>"], [np.array([0.5, 0.5])])
    return f"results.md: {next(line for line in format_markdown(made).splitlines() if 'img' in line)}"


def table_line(line: str) -> Act:
    return lambda place: place.tool("summarize", place.write("t.jsonl", line))


def doctor(*fields: str) -> Act:
    def act(place: Place) -> str:
        place.write("file", "")
        settings = [part for field in fields for part in ("--set", field.replace("HERE", str(place.folder)))]
        return (
            place.tool("doctor", "--config", place.config(), *settings) + " " + place.shorten(place.printed)
        )

    return act


CASES = [
    Case(
        "outputs",
        "export onto the checkpoint",
        export_onto(lambda _, path: path),
        "is an input, which would be lost; give another name; checkpoint intact",
    ),
    Case(
        "outputs",
        "export onto the checkpoint with --overwrite",
        export_onto(lambda _, path: path, "--overwrite"),
        "checkpoint intact",
    ),
    Case("outputs", "export onto a hard link to it", export_onto(hard_link, "--overwrite"), "is an input"),
    Case(
        "outputs",
        "export onto a symbolic link to it",
        export_onto(symbolic_link, "--overwrite"),
        "is an input",
    ),
    Case(
        "outputs",
        "export onto another file",
        export_onto(lambda place, _: place.write("m.pt", "mine")),
        "--overwrite",
    ),
    Case("outputs", "export onto a folder", export_onto(lambda place, _: place.folder), "is a folder"),
    Case("outputs", "export on a full disk", export_on_full_disk, "m.pt: cannot be written"),
    Case(
        "outputs",
        "evaluate --json onto the checkpoint",
        evaluate_json("step_1.pth", "--overwrite"),
        "step_1.pth intact",
    ),
    Case("outputs", "evaluate --json onto a file", evaluate_json("figures.json"), "figures.json intact"),
    Case(
        "outputs",
        "check_data --json onto the config",
        lambda p: p.tool("check_data", "--config", p.config(), "--json", p.config(), "--overwrite"),
        "is an input",
    ),
    Case(
        "outputs",
        "summarize --plot onto results.json",
        lambda p: p.tool(
            "summarize", p.run(), "--plot", p.folder / "runs/shapes/results.json", "--overwrite"
        ),
        "is an input",
    ),
    Case(
        "outputs", "predict into earlier predictions", predict_twice(), "holds predictions of an earlier call"
    ),
    Case(
        "outputs", "predict into earlier predictions with --overwrite", predict_twice("--overwrite"), "exit 0"
    ),
    Case(
        "outputs",
        "predict into a file",
        lambda p: (p.write("out", ""), p.predict(photo(p)))[1],
        "is no folder, but",
    ),
    Case(
        "predict",
        "a link to itself",
        predict_all_but(lambda d: (d / "l.png").symlink_to("l.png")),
        "in a circle; mend the link; 1 listed",
    ),
    Case(
        "predict",
        "a link to nothing",
        predict_all_but(lambda d: (d / "l.png").symlink_to("x")),
        "mend the link; 1 listed",
    ),
    Case("predict", "a name of 255 bytes", predict_all_but(longest_name), "2 listed"),
    Case(
        "predict",
        "a name that is not UTF-8",
        predict_all_but(not_utf8),
        "the name is not UTF-8; rename the file; 1 listed",
    ),
    Case(
        "predict",
        "a FIFO",
        predict_all_but(lambda d: os.mkfifo(d / "f.png")),
        "is a named pipe; give a regular file; 1 listed",
    ),
    Case(
        "predict",
        "a folder named like an image",
        predict_all_but(lambda d: (d / "f.png").mkdir()),
        "is a folder",
    ),
    Case(
        "predict",
        "30000x30000 claimed in the header",
        predict_all_but(lambda d: bomb(d / "b.png")),
        "cut it into tiles, its mask alike, or scale both down; 1 listed",
    ),
    Case(
        "predict",
        "more than the memory",
        no_memory,
        "too large for the memory of this machine; cut it into tiles; 1 listed",
    ),
    Case(
        "predict",
        "a PNG without pixels",
        predict_all_but(lambda d: (d / "b.png").write_bytes(png(9, 9, 2))),
        "1 listed",
    ),
    Case(
        "predict",
        "--max-pixels 100",
        lambda p: p.predict(photo(p), options=["--max-pixels", "100"]),
        "cut it into tiles",
    ),
    Case(
        "predict",
        "--batch-size of 40 digits",
        lambda p: p.predict(photo(p), options=["--batch-size", "9" * 40]),
        "give a whole number",
    ),
    Case(
        "predict",
        "--num-workers -1",
        lambda p: p.predict(photo(p), options=["--num-workers", "-1"]),
        "give a whole number",
    ),
    Case("predict", "an input of 300 characters", lambda p: p.predict("n" * 300 + ".png"), "exit 2"),
    Case(
        "results",
        "steps in reverse order, report",
        results(reverse, "report"),
        "steps stand in order, from 0",
    ),
    Case(
        "results",
        "steps in reverse order, summarize",
        results(reverse, "summarize"),
        "steps stand in order, from 0",
    ),
    Case(
        "results",
        "NaN, summarize",
        results(in_step(1, miou_all=float("nan")), "summarize"),
        "NaN is no number of JSON",
    ),
    Case(
        "results",
        "NaN, report",
        results(in_step(1, miou_all=float("nan")), "report"),
        "NaN is no number of JSON",
    ),
    Case(
        "results",
        "1e999, summarize",
        raw_results(
            '{"steps": [{"step": 0, "per_class_iou": {"a": 1e999}}], "class_names": ["a"]}', "summarize"
        ),
        "found inf",
    ),
    Case(
        "results",
        "`miou_all: 17.0`, summarize",
        results(in_step(1, miou_all=17.0), "summarize"),
        "steps.1.miou_all: Input should be less than or equal to 1, found 17.0",
    ),
    Case(
        "results",
        "`miou_all: 17.0`, report",
        results(in_step(1, miou_all=17.0), "report"),
        "steps.1.miou_all: ",
    ),
    Case(
        "results",
        "an IoU of -0.1",
        results(in_step(0, per_class_iou={"background": -0.1}), "report"),
        "greater than or equal to 0",
    ),
    Case("results", "a score that is a text", results(in_step(0, hiou="0.5"), "summarize"), "steps.0.hiou: "),
    Case(
        "results",
        "classes in another order",
        results(lambda c: c["class_names"].reverse(), "report"),
        "in another order",
    ),
    Case("results", "no classes", results(lambda c: c.update(class_names=[]), "report"), "class_names: "),
    Case("results", "steps a mapping", results(lambda c: c.update(steps={}), "report"), "steps: "),
    Case(
        "results",
        "nested 100 000 deep, report",
        raw_results("[" * 100_000, "report"),
        "nested more than 32 deep",
    ),
    Case(
        "results",
        "nested 100 000 deep, summarize",
        raw_results("[" * 100_000, "summarize"),
        "nested more than 32 deep",
    ),
    Case("results", "a FIFO, report", in_run("results.json", os.mkfifo, "report"), "is a named pipe"),
    Case("results", "a FIFO, summarize", in_run("results.json", os.mkfifo, "summarize"), "is a named pipe"),
    Case("results", "a folder, summarize", in_run("results.json", Path.mkdir, "summarize"), "is a folder"),
    Case(
        "results",
        "config.yaml a circle of links",
        in_run("config.yaml", lambda p: p.symlink_to(p.name), "summarize"),
        "links lead in a circle",
    ),
    Case(
        "results",
        "task.json with wrong colours",
        in_run(
            "task.json", lambda p: p.write_text('{"steps": [], "colours": {"background": "red"}}'), "report"
        ),
        "not the task of this run",
    ),
    Case(
        "results",
        "metrics.jsonl of other things",
        in_run("metrics.jsonl", lambda p: p.write_text('{"step": "x", "iteration": []}\n[]\n'), "report"),
        "exit 0",
    ),
    Case("results", "a table's line nested deep", table_line("[" * 100_000), "nested more than 32 deep"),
    Case(
        "results",
        "a table that is a FIFO",
        lambda p: p.tool("summarize", p.fifo("t.jsonl")),
        "is a named pipe",
    ),
    Case("results", "a class that is HTML", hostile_names, "&lt;img src=x onerror=alert(1)&gt;"),
    Case("doctor", "output_dir a file", doctor("output_dir=HERE/file"), "is no folder, but"),
    Case("doctor", "output_dir below a file", doctor("output_dir=HERE/file/runs"), "is no folder, but"),
    Case("doctor", "data.root a file", doctor("data.name=folder", "data.root=HERE/file"), "no such file"),
]
