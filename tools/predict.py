"""Segment images with a trained model.

INPUT is an image, a folder (searched to its depths) or a glob in quotes. FOLDER gets masks/ (PNG, pixel = class id, in
the classes' colours), overlays/ (the same over the image) and predictions.json (classes, and the share of every class
in every image), all in the images' own size. Results have the images' names, with the path from the folder given, of a
glob from the folder before its first wildcard.
An image of which the model would see more than 4 million pixels is cut into overlapping tiles, to bound the memory.
Exit code 2: an error, or images that could not be read; the others are done, and predictions.json lists them.
"""

import argparse
import glob
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode

from datasets.file_dataset import check_libraries, describe_aspect, read_image
from datasets.folder import IMAGE_SUFFIXES
from datasets.listing import is_hidden
from datasets.tasks import IGNORE_INDEX
from datasets.transforms import resize_short_side
from datasets.unreadable import explain
from models import ModelInfo, load_model
from trainer.config import Config, make_config
from trainer.tiles import predict_each
from utils.arguments import add_checkpoint, add_device, add_overwrite, finish, new_parser, to_path
from utils.console import progress_bar
from utils.distributed import find_worker
from utils.errors import DataError
from utils.files import check_writable, open_atomic, write_atomic, writing
from utils.images import MAX_PIXELS, UInt8Array
from utils.loading import ReadAhead
from utils.report.pictures import IGNORED_COLOUR

EXAMPLES = """
python -m tools.predict runs/demo/checkpoints/step_2.pth photos/ "more/**/*.jpg" --output predictions
python -m tools.predict runs/demo/checkpoints/step_2.pth aerial/ --output predictions --mode sliding --short-side own
"""
OPACITY = 0.6
"""Of a class's colour over the image."""
ROWS_AT_ONCE = 256
"""Of an overlay: its arithmetic takes 20 times the memory of the pixels."""
SECONDS_BETWEEN_LISTS = 10.0
"""predictions.json is written as it goes, no more often than this, and at the end whatever happens."""
PREDICTIONS = "predictions.json"
TOO_LARGE = "too large for the memory of this machine; cut it into tiles"
UNSURE = "(unsure)"
"""What predictions.json calls pixels below --confidence; no class is named so."""


def find_images(inputs: Sequence[str], output: Path) -> dict[Path, Path]:
    """Return the images of files, folders and globs, by the relative path, without suffix, that their results get.

    What lies below `output` is no input. Raises FileNotFoundError or ValueError naming an input without images, or two
    images with one name.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        images = list(_images_of(given, output))
        if not images:
            raise FileNotFoundError(
                f"{given}: no image; give a file, a glob, or a folder that holds {', '.join(IMAGE_SUFFIXES)}, "
                "outside --output"
            )
        for name, image in images:
            if os.path.realpath(found.setdefault(name, image)) != os.path.realpath(image):
                raise ValueError(
                    f"{image}: its results would replace those of {found[name]}, both being named {name}; "
                    "rename one, or predict them into two folders"
                )
    return found


def _images_of(given: str, output: Path) -> Iterator[tuple[Path, Path]]:
    """Yield name and path of an input's images: a file as it is, of folders and globs what has an image's suffix."""
    path = to_path(given)
    if path.is_dir():
        root, images = path, _search(path)
    elif os.path.lexists(path):  # a link to nothing is told as an image that cannot be read
        root, images = path.parent, [path]
    else:
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - absolute ones
        images = [image for match in matches for image in (_search(match) if match.is_dir() else [match])]
        images = [image for image in images if image.suffix.lower() in IMAGE_SUFFIXES]
    for image in images:
        # realpath, as Path.resolve ends with an error where links lead in a circle.
        if Path(os.path.realpath(output)) not in Path(os.path.realpath(image)).parents:
            yield image.relative_to(root).with_suffix(""), image


def _search(folder: Path) -> list[Path]:
    """Images in a folder to its depths, without hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path, folder)
    ]


class Images(Dataset[tuple[Tensor, Tensor, str]]):
    """Images as the model sees them (3,h,w) and as they are (H,W,3), uint8; and why one cannot be read, else ''.

    short_sides: images whose short side is outside this range are scaled to its nearer end; None scales none.
    """

    def __init__(
        self, paths: Sequence[Path], short_sides: tuple[int, int] | None, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.paths = paths
        self.short_sides = short_sides
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        path = self.paths[index]
        try:
            str(path).encode()
            pixels = read_image(path, self.max_pixels)
            problem = describe_aspect(path, pixels.shape[1::-1])
        except UnicodeEncodeError:
            problem = f"{str(path)!a}: the name is not UTF-8; rename the file"
        except MemoryError:
            problem = f"{path}: {TOO_LARGE}"
        except (DataError, OSError) as error:
            problem = explain(error)
        if problem is not None:
            return torch.empty(0), torch.empty(0), problem
        shown = torch.from_numpy(np.ascontiguousarray(pixels))
        image = shown.permute(2, 0, 1)
        own = min(image.shape[1:])
        smallest, largest = self.short_sides or (own, own)
        if not smallest <= own <= largest:
            image = resize_short_side(image, min(max(own, smallest), largest), InterpolationMode.BILINEAR)
        return image.contiguous(), shown, ""


def read_images(
    dataset: Images, num_workers: int, problems: list[str]
) -> Iterator[tuple[Tensor, torch.Size, tuple[int, UInt8Array]]]:
    """Yield what the model sees of every image, the image's size, and its number and pixels (H,W,3).

    Why one cannot be read is added to `problems`.
    """
    # A large image ahead takes as much memory as the one at work.
    loader = ReadAhead(
        dataset, batch_size=None, num_workers=num_workers, prefetch_factor=1 if num_workers else None
    )
    bar = progress_bar("predicting", len(dataset), "image", over=loader)
    for index, (image, pixels, problem) in enumerate(bar):
        if problem:
            problems.append(problem)
        else:
            yield image, pixels.shape[:2], (index, pixels.numpy())


def save_images(
    output: Path, name: Path, pixels: UInt8Array, classes: UInt8Array, palette: UInt8Array
) -> None:
    """Write the mask and the overlay of an image; background (class 0) and unsure pixels are not laid over."""
    mask = Image.fromarray(classes)
    mask.putpalette(palette.tobytes())
    mixed = np.empty_like(pixels)
    for first in range(0, len(pixels), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        known = (classes[rows] > 0) & (classes[rows] != IGNORE_INDEX)
        shown = known[:, :, None] * OPACITY
        mixed[rows] = (pixels[rows] * (1 - shown) + palette[classes[rows]] * shown).round()
    overlay = Image.fromarray(mixed)
    for folder, image in (("masks", mask), ("overlays", overlay)):
        path = output / folder / f"{name}.png"
        with writing(path, classes.size), open_atomic(path) as file:
            image.save(file, "PNG")


def describe_image(name: Path, path: Path, classes: UInt8Array, info: ModelInfo) -> dict[str, Any]:
    """An image's entry of predictions.json; shares are fractions of its pixels, of the classes that it shows."""
    # A few rows at a time: numpy counts in 64 bits.
    counts = np.zeros(256, np.int64)
    for first in range(0, len(classes), ROWS_AT_ONCE):
        counts += np.bincount(classes[first : first + ROWS_AT_ONCE].ravel(), minlength=256)
    names = {**dict(enumerate(info.class_names)), IGNORE_INDEX: UNSURE}
    return {
        "image": str(path),
        "mask": f"masks/{name.as_posix()}.png",
        "overlay": f"overlays/{name.as_posix()}.png",
        "width": classes.shape[1],
        "height": classes.shape[0],
        "shares": {names[int(c)]: counts[c] / classes.size for c in np.flatnonzero(counts)},
    }


def run(args: argparse.Namespace) -> list[str]:
    """Predict everything that the command line names; returns a line for every image that cannot be read."""
    Image.MAX_IMAGE_PIXELS = args.max_pixels
    check_predictions(args.output, args.overwrite)
    device = find_worker(args.device).device
    model, info = load_model(args.checkpoint, device)
    config = adapt_config(make_config(info.config, args.checkpoint), args.mode, args.batch_size)
    images = find_images(args.inputs, args.output)
    check_libraries()
    names = list(images)
    short_sides = find_short_sides(args.short_side, config, is_solved=model.closed_form is not None)
    dataset = Images(list(images.values()), short_sides, args.max_pixels)
    palette = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    palette[: len(info.palette)] = info.palette
    problems: list[str] = []
    entries: dict[int, dict[str, Any]] = {}
    samples = read_images(dataset, min(args.num_workers, len(dataset)), problems)
    written = time.monotonic()

    def refuse(told: tuple[int, UInt8Array]) -> None:
        index, _ = told
        problems.append(f"{dataset.paths[index]}: {TOO_LARGE}")

    try:
        for (index, pixels), ids in predict_each(model, samples, config, device, refuse, args.confidence):
            save_images(args.output, names[index], pixels, ids, palette)
            entries[index] = describe_image(names[index], dataset.paths[index], ids, info)
            if time.monotonic() - written > SECONDS_BETWEEN_LISTS:
                write_predictions(args.output, args.checkpoint, info, entries)
                written = time.monotonic()
    finally:
        write_predictions(args.output, args.checkpoint, info, entries)
    print(f"{args.output}: {len(entries)} of {len(dataset)} images, {len(info.class_names)} classes")
    return problems


def find_short_sides(asked: int | str | None, config: Config, is_solved: bool) -> tuple[int, int] | None:
    """Return the range of short sides that the model sees, None for images' own; asked: that of the command line.

    By default as `evaluate.short_side` has it. Where that is the crop, images keep their own size between the crop and
    the largest scale of training: larger objects are segmented better (docs/results.md). A solved model has seen no
    other scale than the crop.
    """
    side = asked or config.evaluate.short_side
    if side == "own":
        return None
    if isinstance(side, int):
        return side, side
    crop = config.train.crop_size
    return crop, crop if is_solved else max(crop, round(crop * config.train.max_scale))


def check_predictions(output: Path, overwrite: bool) -> None:
    """Raise ValueError or OSError where a folder cannot take predictions, or holds some without `overwrite`."""
    for folder in (output, output / "masks", output / "overlays"):
        check_writable(folder)
    if (output / PREDICTIONS).exists() and not overwrite:
        raise ValueError(
            f"--output {output}: holds predictions of an earlier call; give another folder, or replace them with "
            "--overwrite"
        )


def write_predictions(
    output: Path, checkpoint: Path, info: ModelInfo, entries: dict[int, dict[str, Any]]
) -> None:
    """Write predictions.json of the images so far, in the order of the command line."""
    described = {
        "checkpoint": str(checkpoint),
        "classes": [
            {"id": c, "name": name, "colour": list(colour)}
            for c, (name, colour) in enumerate(zip(info.class_names, info.palette, strict=True))
        ],
        "images": [entries[index] for index in sorted(entries)],
    }
    write_atomic(output / PREDICTIONS, json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def adapt_config(config: Config, mode: str | None, batch_size: int | None) -> Config:
    """Return the config with the way of looking at images that the command line asks for; nothing is cut off."""
    own = "sliding" if config.evaluate.mode == "sliding" else "whole"
    changes = {"mode": mode or own, "batch_size": batch_size or config.evaluate.batch_size}
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changes)})


def parse_side(text: str) -> int | str:
    """Read --short-side; raises ArgumentTypeError."""
    try:
        return text if text == "own" else parse_count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or 'own'") from error


def parse_count(text: str) -> int:
    """Read a number of at least 1; raises ArgumentTypeError."""
    if not text.isdecimal() or len(text) > 12 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text[:40]}': give a whole number of at least 1")
    return int(text)


def parse_workers(text: str) -> int:
    """Read --num-workers; raises ArgumentTypeError."""
    if not text.isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError(f"'{text[:40]}': give a whole number of processes, 0 for none")
    return int(text)


def parse_share(text: str) -> float:
    """Read a number from 0 to 1; raises ArgumentTypeError."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}': give a number from 0 to 1")
    return share


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.predict", __doc__, EXAMPLES)
    what = parser.add_argument_group("input and output")
    add_checkpoint(what)
    what.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder or glob")
    what.add_argument("--output", type=to_path, required=True, metavar="FOLDER", help="gets the results")
    add_overwrite(what)
    view = parser.add_argument_group("what the model sees")
    view.add_argument(
        "--mode",
        choices=["whole", "sliding"],
        help="the whole image at once, or overlapping windows of the training crop's size (large images; their stride "
        "is the checkpoint's evaluate.stride); default: as the checkpoint's evaluate.mode has it",
    )
    view.add_argument(
        "--short-side",
        type=parse_side,
        metavar="PIXELS",
        help="scale an image's short side to this before the model sees it, 'own' not at all (with --mode sliding "
        "for large images with small objects); default: as the checkpoint's evaluate.short_side has it, but from the "
        "training crop up to the largest scale of training",
    )
    view.add_argument(
        "--confidence",
        type=parse_share,
        default=0.0,
        metavar="SHARE",
        help="give pixels whose class is less probable than this (0 to 1) no class: 255 in the masks; default: 0",
    )
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--batch-size",
        type=parse_count,
        metavar="N",
        help="images, with sliding: windows, a forward pass; default: the checkpoint's evaluate.batch_size",
    )
    how.add_argument(
        "--max-pixels",
        type=parse_count,
        default=MAX_PIXELS,
        metavar="N",
        help="images of more pixels are not read, which bounds the memory; default: %(default)s",
    )
    how.add_argument(
        "--num-workers",
        type=parse_workers,
        default=2,
        metavar="N",
        help="processes that read images; default: 2",
    )
    add_device(how)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 where an image could not be read."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return finish(parser, lambda: run(args), "could not be read")


if __name__ == "__main__":
    raise SystemExit(main())
