"""Bring annotated images into the layout of data.name=folder.

FORMAT is labelme (a folder of JSON files), coco (a JSON of instances or of panoptic PNGs) or cityscapes (a root with
leftImg8bit/ and gtFine/). DIR gets images/{train,val}, masks/{train,val} (PNG, pixel = class id) and a list of classes.

Where objects overlap, smaller ones lie over larger ones. Crowds (COCO), what no segment covers (panoptic) and void
(Cityscapes) are ignored (255); what no shape or instance covers is background (0), and so is every label that --classes
leaves out. A rerun of the same command goes on where it stopped; what has been added or changed since is done anew.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.class_index import map_in_processes
from datasets.file_dataset import SPLITS
from datasets.folder import IMAGE_SUFFIXES
from tools.prepare.choice import choose_classes, find_colours, split_samples
from tools.prepare.coco import read_coco
from tools.prepare.labelme import read_labelme
from tools.prepare.output import SETTINGS, Job, check_output, write_classes, write_sample
from tools.prepare.samples import Annotations, Sample, read_cityscapes
from utils.arguments import finish, help_texts, new_parser
from utils.files import write_atomic
from utils.images import Colour, make_palette

EXAMPLES = """
python -m tools.prepare_folder labelme photos/ --output fruit --val-fraction 0.2
python -m tools.prepare_folder coco train.json --images photos/ --val val.json --output fruit --classes pear kiwi
python -m tools.prepare_folder cityscapes data_root/cityscapes --output streets --link
"""
SOURCES = ("source", "images", "masks", "val", "val_images", "val_masks")
"""Arguments that name the source."""


def read_source(args: argparse.Namespace) -> dict[str, Annotations]:
    """The annotations of every split that the command line names: 'train', and 'val' where it is given."""
    if args.format == "cityscapes":
        return {split: read_cityscapes(args.source, split) for split in SPLITS}
    if args.format == "labelme":
        folders = {"train": args.source} | ({"val": args.val} if args.val else {})
        return {
            split: read_labelme(folder, [*folders.values(), args.output]) for split, folder in folders.items()
        }
    found = {"train": read_coco(args.source, args.images, args.masks)}
    if args.val:
        found["val"] = read_coco(args.val, args.val_images or args.images, args.val_masks)
    return found


def plan_jobs(
    args: argparse.Namespace,
    splits: Mapping[str, Sequence[Sample]],
    classes: Sequence[str],
    colours: Sequence[Colour] | None,
) -> list[Job]:
    """A job for every sample; raises ValueError for an image in a format that data.name=folder does not take."""
    palette = np.array(make_palette(256), np.uint8)
    if colours is not None:
        palette[: len(colours)] = colours
    ids = {name: class_id for class_id, name in enumerate(classes, start=1)}
    jobs = []
    for split, samples in splits.items():
        for sample in samples:
            if sample.image.suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(
                    f"{sample.image}: allowed are {', '.join(IMAGE_SUFFIXES)}; convert the image"
                )
            image = args.output / "images" / split / f"{sample.image_id}{sample.image.suffix}"
            mask = args.output / "masks" / split / f"{sample.image_id}.png"
            jobs.append(Job(sample, ids, image, mask, palette.tobytes(), args.link))
    return jobs


def run(args: argparse.Namespace) -> list[str]:
    """Prepare everything that the command line names; returns a line for every sample that could not be."""
    if args.source.resolve() in args.output.resolve().parents:
        raise ValueError(
            f"--output {args.output}: lies in {args.source}, which is searched; choose another place"
        )
    output: Path = args.output
    found = read_source(args)
    splits = split_samples(found, args.val_fraction, output)
    classes, left_out = choose_classes(found, args.classes)
    colours = find_colours(found, classes)
    jobs = plan_jobs(args, splits, classes, colours)
    settings = {
        "format": args.format,
        "sources": [str(value.resolve()) for name, value in vars(args).items() if name in SOURCES and value],
        "val_fraction": None if args.val else args.val_fraction,
        "classes": classes,
    }
    check_output(output, settings, jobs)
    write_atomic(output / SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    class_list = write_classes(output, classes, colours)
    results = list(map_in_processes(write_sample, jobs, args.num_workers, "preparing", "image"))
    problems = [problem for problem in results if problem is not None]
    counts = " and ".join(f"{len(samples)} {split}" for split, samples in splits.items())
    print(f"{output}: {counts} images, {len(classes)} classes ({class_list.name}): {', '.join(classes)}")
    if left_out:
        print(f"labels left out (background): {', '.join(left_out)}")
    return problems


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.prepare_folder", __doc__, EXAMPLES)
    formats = parser.add_subparsers(
        title="formats",
        dest="format",
        required=True,
        metavar="FORMAT",
        help="FORMAT --help lists its options",
    )
    _, what = _add_format(formats, "labelme", "a folder of Labelme's JSON files")
    what.add_argument("source", type=Path, metavar="FOLDER", help="searched to its depths")
    what.add_argument(
        "--val", type=Path, metavar="FOLDER", help="that of the validation images; it may lie below the other"
    )
    _add_fraction(what)
    _, what = _add_format(formats, "coco", "COCO's JSON, instances or panoptic")
    what.add_argument("source", type=Path, metavar="JSON", help="annotations of the training images")
    what.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="where the images lie")
    what.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="panoptic PNGs; default: beside the JSON, a folder of its name",
    )
    what.add_argument("--val", type=Path, metavar="JSON", help="that of the validation images")
    what.add_argument("--val-images", type=Path, metavar="FOLDER", help="where these lie; default: --images")
    what.add_argument("--val-masks", type=Path, metavar="FOLDER", help="as --masks, for --val")
    _add_fraction(what)
    cityscapes, what = _add_format(formats, "cityscapes", "leftImg8bit/ and gtFine/ with train and val")
    what.add_argument("source", type=Path, metavar="ROOT", help="holds the two folders")
    cityscapes.set_defaults(val=None, val_fraction=None)
    return parser


def _add_format(
    formats: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, what: str
) -> tuple[argparse.ArgumentParser, argparse._ArgumentGroup]:
    """Add the parser of a format, whose source is `what`; returns it, and its group that is to name the source."""
    examples = [line for line in EXAMPLES.splitlines() if f"tools.prepare_folder {name} " in line]
    description = f"Bring {what} into the layout of data.name=folder."
    parser = formats.add_parser(name, help=what, **help_texts(description, "\n".join(examples)))
    source = parser.add_argument_group("input")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new folder, the later data.root"
    )
    output.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="labels that become classes, in the order of their ids; default: all, Labelme's by alphabet, COCO's by id",
    )
    output.add_argument("--link", action="store_true", help="link the images instead of copying them")
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="processes that draw masks; default: 2"
    )
    return parser, source


def _add_fraction(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--val-fraction",
        type=parse_fraction,
        default=0.1,
        metavar="F",
        help="share of the images that becomes val, by their ids, where --val is not given; default: 0.1",
    )


def parse_fraction(text: str) -> float:
    """Read --val-fraction; raises ArgumentTypeError."""
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction < 1:
        raise argparse.ArgumentTypeError(f"'{text}': give a number between 0 and 1, such as 0.1")
    return fraction


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 where an image could not be prepared."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return finish(parser, lambda: run(args), "could not be prepared")


if __name__ == "__main__":
    raise SystemExit(main())
