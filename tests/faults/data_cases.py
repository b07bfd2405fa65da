"""Data sets that are not what they seem."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.place import Case, Place
from tests.support.data import cut_short, stripes, write_cityscapes, write_mask, write_voc
from utils.images import make_palette

Act = Callable[[Place], str]


def sizes(place: Place) -> str:
    """The images of each step in setting overlap, as --dry-run has them."""
    lines = [line for line in place.printed.splitlines() if "| overlap |" in line]
    return lines[0] if lines else ""


def check(place: Place, *fields: str) -> str:
    """What check_data says of the data set of one's own."""
    arguments: list[str | Path] = [
        "--config",
        place.config(),
        "--set",
        "data.name=folder",
        "--set",
        "task=[[pear], [kiwi]]",
    ]
    arguments += ["--set", f"data.root={place.folder / 'data'}", "--set", "data.num_workers=0"]
    place.tool("check_data", *arguments, *(part for field in fields for part in ("--set", field)))
    return place.shorten(place.printed)


# Lists of classes


def first_line(spelling: str) -> Act:
    def act(place: Place) -> str:
        data = place.data([spelling, "pear", "kiwi", "fig"])
        write_mask(data / "masks" / "train" / "img0.png", stripes(0, 1, height=32, width=32))
        write_mask(data / "masks" / "train" / "img1.png", stripes(0, 1, 2, 3, height=32, width=32))
        answer = place.on_folder()
        return f"images a step: {sizes(place)}" if answer.startswith("exit 0") else answer

    return act


def classes(*lines: str) -> Act:
    def act(place: Place) -> str:
        place.data(lines)
        return place.on_folder()

    return act


def classes_yaml(text: str) -> Act:
    def act(place: Place) -> str:
        (place.data() / "classes.yaml").write_bytes(text.encode())
        return place.on_folder()

    return act


def between_steps(change: Callable[[Place, Path], object]) -> Act:
    """Something changes after step 0 of a run; it would go on with step 1."""

    def act(place: Place) -> str:
        run, data = place.run("folder"), place.data()
        (run / "checkpoints" / "step_1.pth").unlink()
        (run / "results.json").unlink()
        place.config()
        change(place, data)
        # The run was begun at another root, which is no part of its identity here.
        text = (run / "config.yaml").read_text()
        root = next(line for line in text.splitlines() if line.startswith("  root:"))
        (run / "config.yaml").write_text(text.replace(root, f"  root: {data}"))
        return place.on_folder(log="folder")

    return act


def reorder(_: Place, data: Path) -> None:
    (data / "classes.txt").write_text("kiwi\npear\nfig\n")


def rename_unused(_: Place, data: Path) -> None:
    (data / "classes.txt").write_text("pear\nkiwi\ndate\n")


def recolour(_: Place, data: Path) -> None:
    names = ["background", "pear", "kiwi", "fig"]
    (data / "classes.yaml").write_text(
        "".join(f"- {{name: {name}, color: [{i}, {9 * i}, 0]}}\n" for i, name in enumerate(names))
    )


def replace_checkpoint(place: Place, _: Path) -> None:
    shutil.copy(place.checkpoint(0), place.folder / "runs" / "folder" / "checkpoints" / "step_0.pth")


def relabel_other_images(_: Place, data: Path) -> None:
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (data / kind / "train" / f"img0.{suffix}").rename(data / kind / "train" / f"img9.{suffix}")


# VOC and Cityscapes


def voc_list(*lines: str) -> Act:
    def act(place: Place) -> str:
        masks = {name: stripes(0, 15) for name in ("x", "x.1", "a b", "a", "-1")}
        voc = write_voc(place.folder / "voc", masks, {"v": stripes(0, 15)})
        (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("".join(f"{s}\n" for s in lines))
        from datasets import voc as voc_data

        try:
            return f"trains on {', '.join(voc_data.open_split(place.folder / 'voc', 'train').ids)}"
        except Exception as error:
            return place.shorten(f"exit 2: {error}")

    return act


def voc_palette(numbers: dict[int, int], grey: bool = False, whole: bool = False) -> Act:
    """VOC whose masks a program has saved again: numbers by class; its palette holds the colours of these classes."""

    def act(place: Place) -> str:
        masks = {name: stripes(0, *numbers.values()) for name in "abcd"}
        voc = write_voc(place.folder / "voc", masks, masks)
        colours = make_palette(256)
        palette = [(i, i, i) if grey else colours[i] if whole else (1, 2, 3) for i in range(256)]
        palette[0] = (0, 0, 0)
        for class_id, number in numbers.items():
            palette[number] = palette[number] if grey else colours[class_id]
        for name in masks:
            mask = Image.fromarray(masks[name])
            mask.putpalette(np.array(palette, np.uint8).tobytes())
            mask.save(voc / "SegmentationClassAug" / f"{name}.png")
        names = ["data.name=voc", "task=[[person], [bird]]", f"data.root={place.folder / 'voc'}"]
        answer = place.main(*names)
        return f"images a step: {sizes(place)}" if answer.startswith("exit 0") else answer

    return act


def cityscapes(*numbers: int) -> Act:
    def act(place: Place) -> str:
        masks = {f"ulm_0_{i}": stripes(*numbers, height=32, width=48) for i in range(4)}
        root = write_cityscapes(place.folder / "city", masks, masks)
        answer = place.main("data.name=cityscapes", f"data.root={root}", "task=[[road], [sidewalk]]")
        return f"images a step: {sizes(place)}" if answer.startswith("exit 0") else answer

    return act


# Masks and images


def png(width: int, height: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8 bits from its chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def beyond_palette(place: Place) -> str:
    data = place.data()
    colours = {"background": (0, 0, 0), "pear": (9, 0, 0), "kiwi": (0, 9, 0)}
    lines = (f"- {{name: {name}, color: [{r}, {g}, {b}]}}\n" for name, (r, g, b) in colours.items())
    (data / "classes.yaml").write_text("".join(lines))
    pixels = b"".join(b"\0" + bytes([0] * 16 + [7] * 8 + [1] * 4 + [2] * 4) for _ in range(32))
    palette = b"".join(map(bytes, colours.values()))
    for path in (data / "masks").rglob("*.png"):
        path.write_bytes(png(32, 32, 3, (b"PLTE", palette), (b"IDAT", zlib.compress(pixels))))
    return place.on_folder()


def same_size_and_time(place: Place) -> str:
    data = place.data(num_images=4)
    path = data / "masks" / "train" / "img0.png"

    def save(*ids: int) -> None:
        times = path.stat().st_mtime_ns
        Image.fromarray(stripes(*ids, height=32, width=32)).save(path, compress_level=0)
        os.utime(path, ns=(times, times))

    save(0, 1)
    place.on_folder()
    before = sizes(place)
    size = path.stat().st_size
    save(0, 2)
    assert path.stat().st_size == size
    place.on_folder()
    return f"images a step: {before} then {sizes(place)}"


def spoil(name: str, change: Callable[[Path], object], *fields: str) -> Act:
    """A file of the data set is spoilt, and the data set is looked at."""

    def act(place: Place) -> str:
        path = place.data() / name
        change(path)
        return place.on_folder(*fields)

    return act


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in place of a file."""

    def change(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return change


fifo = replace_by(os.mkfifo)
loop = replace_by(lambda path: path.symlink_to(path.name))
dangling = replace_by(lambda path: path.symlink_to("nowhere"))
folder = replace_by(lambda path: path.mkdir())
device = replace_by(lambda path: path.symlink_to("/dev/zero"))
SKIP = ("data.on_error=skip", "data.max_skipped=0.5")


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def bomb(path: Path) -> None:
    """A header that claims 900 million pixels."""
    path.write_bytes(
        png(30000, 30000, 0 if "masks" in path.parts else 2, (b"IDAT", zlib.compress(b"\0" * 99)))
    )


def bomb_image(place: Place) -> str:
    data = place.data()
    (data / "images" / "train" / "img1.jpg").unlink()
    bomb(data / "images" / "train" / "img1.png")
    return place.on_folder()


def large_mask(path: Path) -> None:
    rows = zlib.compress(b"\0" * 14001, 1)
    path.write_bytes(png(14000, 14000, 0, (b"IDAT", rows)))


def all_void(place: Place) -> str:
    data = place.data()
    for path in (data / "masks" / "val").iterdir():
        write_mask(path, stripes(255, height=32, width=32))
    place.on_folder()
    told = [line for line in place.printed.splitlines() if "ignored" in line]
    return place.shorten(f"exit 0: {told[0] if told else '(nothing)'}")


def every_image_skipped(place: Place) -> str:
    data = place.data()
    for path in (data / "images" / "train").iterdir():
        cut_short(path)
    return place.on_folder("data.on_error=skip", "data.max_skipped=1", "method=finetune", train=True)


def hostile_file_name(place: Place) -> str:
    data = place.data()
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        path = data / kind / "train" / f"img0.{suffix}"
        path.rename(path.with_name(f"im\ng0.{suffix}"))
    return place.on_folder()


def ids(content: bytes) -> Act:
    def act(place: Place) -> str:
        place.data()
        return place.on_folder(f"data.train_ids={place.write('ids.txt', content)}")

    return act


SPELLINGS = [
    "Background",
    " BACKGROUND ",
    "bg",
    "BG",
    "_background_",
    "\ufeffbackground",
    "back ground",
    "background",
]
COUNT = "| folder | 1-1 | overlap | 4, 3 |"
RENUMBERED = "a program has renumbered the mask"

CASES = [
    *(Case("classes", f"first line {s!a}", first_line(s), COUNT) for s in SPELLINGS),
    Case(
        "classes",
        "`Background` in line 2",
        classes("pear", "Background", "kiwi", "fig"),
        "line 2 names background",
    ),
    Case("classes", "`bg` in the last line", classes("pear", "kiwi", "bg"), "line 3 names background"),
    Case(
        "classes",
        "`_background_` last in classes.yaml",
        classes_yaml("- {name: background}\n- {name: pear}\n- {name: _background_}\n"),
        "entry 2 names background",
    ),
    Case(
        "classes",
        "`Background` first in classes.yaml",
        classes_yaml("- {name: Background}\n- {name: pear}\n- {name: kiwi}\n"),
        "exit 0",
    ),
    Case(
        "classes",
        "a name with an escape sequence",
        classes("pear", "kiwi", "\x1b[31mred"),
        "holds characters that do not show",
    ),
    Case(
        "classes",
        "a name with a direction override",
        classes("pear", "kiwi", "\u202egif"),
        "holds characters that do not show",
    ),
    Case(
        "classes",
        "YAML's bare `no` as a name",
        classes_yaml("- {name: background}\n- {name: no}\n"),
        "found false (YAML reads a bare yes, no, on or off so",
    ),
    Case("classes", "classes.yaml nested 2 000 deep", classes_yaml("[" * 2000), "nested more than 32 deep"),
    Case("classes", "classes.yaml of 10 MB", classes_yaml("- {name: a}\n" * 900_000), "larger than 262 kB"),
    Case("classes", "classes.txt a FIFO", spoil("classes.txt", fifo), "is a named pipe"),
    Case("classes", "classes.txt a folder", spoil("classes.txt", folder), "is a folder"),
    Case(
        "classes", "classes.yaml a link to nothing", spoil("classes.yaml", dangling), "no such file or folder"
    ),
    Case("classes", "classes.txt a circle of links", spoil("classes.txt", loop), "links lead in a circle"),
    Case("resume", "classes.txt in another order", between_steps(reorder), "has begun with other classes"),
    Case(
        "resume", "an unused class renamed", between_steps(rename_unused), "in one that the task leaves out"
    ),
    Case(
        "resume", "classes in other colours", between_steps(recolour), "has begun with other classes (palette"
    ),
    Case(
        "resume", "step_0.pth of other classes", between_steps(replace_checkpoint), "step_0.pth: the run in"
    ),
    Case(
        "resume",
        "another image under a new name",
        between_steps(relabel_other_images),
        "1 are missing, such as",
    ),
    Case("resume", "nothing changed", between_steps(lambda *_: None), "exit 0"),
    Case("VOC", "ids with dots and blanks", voc_list("x.1", "a b", "-1"), "trains on x.1, a b, -1"),
    Case(
        "VOC",
        "pairs of paths with dots and blanks",
        voc_list(
            "/JPEGImages/x.1.jpg /SegmentationClassAug/x.1.png",
            "/JPEGImages/a b.jpg /SegmentationClassAug/a b.png",
        ),
        "trains on x.1, a b",
    ),
    Case(
        "VOC",
        "a pair of two images",
        voc_list("/JPEGImages/a.jpg /SegmentationClassAug/x.png"),
        "line 1 pairs",
    ),
    Case("VOC", "palette renumbered by an editor", voc_palette({15: 2, 3: 1}), RENUMBERED),
    Case("VOC", "two entries of the palette swapped", voc_palette({15: 3, 3: 15}, whole=True), RENUMBERED),
    Case(
        "VOC", "the whole palette in its order", voc_palette({15: 15, 3: 3}, whole=True), "| overlap | 4, 4 |"
    ),
    Case("VOC", "a palette of greys", voc_palette({15: 15, 3: 3}, grey=True), "| overlap | 4, 4 |"),
    Case(
        "Cityscapes", "train ids under the name labelIds", cityscapes(0, 1, 8, 13, 255), "these are train ids"
    ),
    Case("Cityscapes", "train ids without void so", cityscapes(0, 1, 7, 11), "these are train ids"),
    Case("Cityscapes", "label ids", cityscapes(7, 8, 23, 26, 3), "| overlap | 4, 4 |"),
    Case(
        "masks",
        "a number beyond the palette, read by colours",
        beyond_palette,
        "has no colour in the mask's palette",
    ),
    Case(
        "masks",
        "rewritten with size and mtime kept",
        same_size_and_time,
        "| overlap | 4, 3 | then | folder | 1-1 | overlap | 3, 4 |",
    ),
    Case("masks", "all void in validation", all_void, "every pixel of every mask is 255"),
    Case("masks", "a FIFO", spoil("masks/train/img0.png", fifo), "is a named pipe"),
    Case("masks", "a link to /dev/zero", spoil("masks/train/img0.png", device), "is a device"),
    Case("masks", "a circle of links", spoil("masks/train/img0.png", loop), "links lead in a circle"),
    Case("masks", "a link to nothing, skipped", spoil("masks/train/img0.png", dangling, *SKIP), "exit 0"),
    Case("masks", "a circle of links, skipped", spoil("masks/train/img0.png", loop, *SKIP), "exit 0"),
    Case("masks", "a FIFO, skipped", spoil("masks/val/img0.png", fifo, *SKIP), "exit 0"),
    Case("masks", "a folder", spoil("masks/train/img0.png", folder), "is a folder"),
    Case(
        "masks", "30000x30000 claimed in the header", spoil("masks/train/img0.png", bomb), "cut it into tiles"
    ),
    Case("masks", "14000x14000", spoil("masks/train/img0.png", large_mask), "cut it into tiles"),
    Case(
        "masks", "text", spoil("masks/train/img0.png", write(b"no mask")), "not a mask that Pillow can decode"
    ),
    Case("images", "a FIFO", spoil("images/train/img0.jpg", fifo), "is a named pipe"),
    Case("images", "a link to nothing", spoil("images/train/img0.jpg", dangling), "no such file or folder"),
    Case("images", "a circle of links, skipped", spoil("images/val/img0.jpg", loop, *SKIP), "exit 0"),
    Case("images", "a folder", spoil("images/train/img0.jpg", folder), "is a folder"),
    Case("images", "30000x30000 claimed in the header", bomb_image, "cut it into tiles"),
    Case("images", "every one of a step skipped", every_image_skipped, "none is left; mend them"),
    Case("images", "the end of a line in a name", hostile_file_name, "holds the end of a line"),
    Case("lists", "NUL in an id", ids(b"img0\0\n"), "not in the train split"),
    Case(
        "lists",
        "an id with a line separator of Unicode",
        ids("img0\u2028img1\n".encode()),
        "not in the train split",
    ),
    Case("lists", "UTF-16", ids("img0\n".encode("utf-16")), "not UTF-8 text"),
    Case("lists", "lines that end in CR", ids(b"img0\rimg1\r"), "exit 0"),
    Case("lists", "blank lines only", ids(b"\n \n\n"), "names no image"),
    Case(
        "check_data",
        "a circle of links",
        lambda p: (loop(p.data() / "masks/val/img1.png"), check(p))[1],
        "img1.png: its links lead in a circle",
    ),
]
