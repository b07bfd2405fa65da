"""Segment images with a trained model.

INPUT is an image, a video, a folder (searched to its depths) or a glob in quotes. FOLDER gets masks/ (PNG, pixel =
class id, in the classes' colours), overlays/ (the same over the image) and predictions.json (classes, and the share of
every class in every image), all in the images' own size. Results have the images' names, with the path from the folder
given, of a glob from the folder before its first wildcard. A video (pip install av) has a folder of frames.
An image of which the model would see more than 4 million pixels is cut into overlapping tiles, to bound the memory.
What lies in a folder and is no image is named at the end.
Exit code 2: an error, or images that could not be read; the others are done, and predictions.json lists them.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.file_dataset import check_libraries
from models import load_model
from tools.predicting.inputs import TOO_LARGE, Images, Range, describe_left_out, find_images, read_images, see
from tools.predicting.outputs import check_predictions, describe_image, save_images, write_predictions
from tools.predicting.videos import VIDEO_SUFFIXES, read_frames
from trainer.config import Config, make_config
from trainer.tiles import Sample, is_large, predict_each
from utils.arguments import add_checkpoint, add_device, add_overwrite, finish, new_parser, to_path
from utils.distributed import find_worker
from utils.errors import DataError
from utils.images import MAX_PIXELS, UInt8Array
from utils.labels import IGNORE_INDEX
from utils.report.pictures import IGNORED_COLOUR

EXAMPLES = """
python -m tools.predict runs/demo/checkpoints/step_2.pth photos/ "more/**/*.jpg" --output predictions
python -m tools.predict runs/demo/checkpoints/step_2.pth aerial/ --output predictions --mode sliding --short-side own
"""
SECONDS_BETWEEN_LISTS = 10.0
"""predictions.json is written as it goes, no more often than this, and at the end whatever happens."""


class Inputs:
    """The images, and frames of videos, that are predicted: their names and where they come from, as they are read.

    problems: a line for every one that cannot be read. num_tiled: how many are looked at in tiles.
    """

    def __init__(self, found: dict[Path, Path], args: argparse.Namespace, short_sides: Range) -> None:
        is_video = {name: path.suffix.lower() in VIDEO_SUFFIXES for name, path in found.items()}
        images = {name: path for name, path in found.items() if not is_video[name]}
        self.videos = {name: path for name, path in found.items() if is_video[name]}
        self.dataset = Images(list(images.values()), short_sides, args.max_pixels)
        self.names = list(images)
        self.sources = [str(path) for path in images.values()]
        self.every = args.every
        self.num_workers = min(args.num_workers, len(images))
        self.problems: list[str] = []
        self.num_tiled = 0

    def __iter__(self) -> Iterator[Sample[tuple[int, UInt8Array]]]:
        images = read_images(self.dataset, self.num_workers, self.problems)
        for image, size, told in itertools.chain(images, self._frames()):
            self.num_tiled += is_large(image, size)
            yield image, size, told

    def _frames(self) -> Iterator[Sample[tuple[int, UInt8Array]]]:
        for name, path in self.videos.items():
            try:
                for number, pixels in read_frames(path, self.every):
                    self.names.append(name / f"frame_{number:06d}")
                    self.sources.append(f"{path}, frame {number}")
                    image = see(torch.from_numpy(pixels), self.dataset.short_sides)
                    yield image, torch.Size(pixels.shape[:2]), (len(self.names) - 1, pixels)
            except DataError as error:
                self.problems.append(str(error))

    def refuse(self, told: tuple[int, UInt8Array]) -> None:
        """Take an image that is too large for the memory."""
        self.problems.append(f"{self.sources[told[0]]}: {TOO_LARGE}")


def run(args: argparse.Namespace) -> list[str]:
    """Predict everything that the command line names; returns a line for every image that cannot be read."""
    Image.MAX_IMAGE_PIXELS = args.max_pixels
    check_predictions(args.output, args.overwrite, args.confidence)
    device = find_worker(args.device).device
    model, info = load_model(args.checkpoint, device)
    config = adapt_config(make_config(info.config, args.checkpoint), args.mode, args.batch_size)
    left_out: list[Path] = []
    found = find_images(args.inputs, args.output, left_out)
    check_libraries()
    inputs = Inputs(found, args, find_short_sides(args.short_side, config, model.closed_form is not None))
    palette = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    palette[: len(info.palette)] = info.palette
    entries: dict[int, dict[str, Any]] = {}
    written = time.monotonic()
    with_confidence = args.confidence or args.min_confidence > 0
    try:
        for (index, pixels), (ids, sure) in predict_each(
            model, inputs, config, device, inputs.refuse, with_confidence
        ):
            name, shown = inputs.names[index], sure if args.confidence else None
            if sure is not None:
                ids[sure < args.min_confidence] = IGNORE_INDEX
            save_images(args.output, name, pixels, ids, shown, palette)
            entries[index] = describe_image(name, inputs.sources[index], ids, shown, info)
            if time.monotonic() - written > SECONDS_BETWEEN_LISTS:
                write_predictions(args.output, args.checkpoint, info, entries)
                written = time.monotonic()
    finally:
        write_predictions(args.output, args.checkpoint, info, entries)
    if left_out:
        print(describe_left_out(left_out))
    if inputs.num_tiled:
        print(f"{inputs.num_tiled} images are large, and were looked at in tiles")
    print(f"{args.output}: {len(entries)} of {len(inputs.names)} images, {len(info.class_names)} classes")
    return inputs.problems


def find_short_sides(asked: int | str | None, config: Config, is_solved: bool) -> Range:
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
    what.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder or glob")
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
        "--every",
        type=parse_count,
        default=1,
        metavar="N",
        help="of a video, take every N-th frame; default: 1",
    )
    what.add_argument(
        "--confidence",
        action="store_true",
        help="write confidence/, too: how probable every pixel's class is, as grey from 0 to 255",
    )
    what.add_argument(
        "--min-confidence",
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
