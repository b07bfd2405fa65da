"""Bring annotated images into the layout of data.name=folder.

FORMAT is labelme (a folder of JSON files), coco (a JSON of instances or of panoptic PNGs) or cityscapes (a root with
leftImg8bit/ and gtFine/). DIR gets images/{train,val}, masks/{train,val} (PNG, pixel = class id) and a list of classes.

Where objects overlap, smaller ones lie over larger ones. Crowds (COCO), what no segment covers (panoptic) and void
(Cityscapes) are ignored (255); what no shape or instance covers is background (0), and so is every label that --classes
leaves out. A rerun of the same command goes on where it stopped; what has been added or changed since is done anew.
"""

import argparse
import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets.class_index import map_in_processes
from datasets.class_list import IGNORE_NAME, MAX_CLASSES, read_class_list
from datasets.file_dataset import SPLITS, describe_size, make_palette
from datasets.folder import IMAGE_SUFFIXES
from datasets.masks import UNDECODABLE, Colour, DataError
from datasets.unreadable import explain
from tools.prepare.coco import read_coco
from tools.prepare.labelme import read_labelme
from tools.prepare.samples import Annotations, Sample, image_size, load_json, read_cityscapes
from utils.arguments import finish, help_texts, new_parser
from utils.files import open_atomic, write_atomic

EXAMPLES = """
python -m tools.prepare_folder labelme photos/ --output fruit --val-fraction 0.2
python -m tools.prepare_folder coco train.json --images photos/ --val val.json --output fruit --classes pear kiwi
python -m tools.prepare_folder cityscapes data_root/cityscapes --output streets --link
"""
SETTINGS = "prepared.json"
"""What DIR was made from, and how."""
STAMP = "made from"
"""Text in a mask's PNG: bytes and times of the files that it was made from."""
SOURCES = ("source", "images", "masks", "val", "val_images", "val_masks")
"""Arguments that name it."""


class Job(NamedTuple):
    """One sample, and where it is to lie; palette: RGB bytes by class id."""

    sample: Sample
    ids: Mapping[str, int]
    image: Path
    mask: Path
    palette: bytes
    link: bool


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


def split_samples(
    found: Mapping[str, Annotations], val_fraction: float, output: Path
) -> dict[str, list[Sample]]:
    """The samples of both splits; where the source has none, those whose hash is below the fraction are held out.

    The hash is the id's. What lies in `output` stays in its split; where that leaves none to hold out, the image of
    the smallest hash among the others is. Raises ValueError where a split is empty, or two images share an id.
    """
    splits = {split: annotations.samples for split, annotations in found.items()}
    if "val" not in splits:
        samples = splits["train"]
        kept = {path.stem: split for split in SPLITS for path in output.glob(f"images/{split}/*")}
        by_hash = {s.image_id: "val" if _position(s) < val_fraction else "train" for s in samples}
        split_of = {image_id: kept.get(image_id, split) for image_id, split in by_hash.items()}
        new = [sample for sample in samples if sample.image_id not in kept]
        if new and "val" not in split_of.values():
            split_of[min(new, key=_position).image_id] = "val"
        splits = {
            split: [sample for sample in samples if split_of[sample.image_id] == split] for split in SPLITS
        }
    first_of: dict[str, Path] = {}
    for split, samples in splits.items():
        if not samples:
            raise ValueError(f"no image for {split}; annotate more, or change --val-fraction")
        for sample in samples:
            other = first_of.setdefault(sample.image_id, sample.image)
            if other is not sample.image:
                raise ValueError(
                    f"{sample.image}: shares the id {sample.image_id!r} with {other}; rename one of them"
                )
    return splits


def _position(sample: Sample) -> float:
    """Where an id falls between 0 and 1."""
    return int.from_bytes(hashlib.sha1(f"val/{sample.image_id}".encode()).digest()[:6], "big") / 256**6


def choose_classes(
    found: Mapping[str, Annotations], wanted: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Class names in the order of their ids from 1 on, and the labels that are left out.

    Those that are `wanted` need not be among the labels. Raises ValueError where there are none, or too many.
    """
    labels = list(dict.fromkeys(label for annotations in found.values() for label in annotations.labels))
    classes = [name for name in dict.fromkeys(wanted or labels) if name != "background"]
    if not 0 < len(classes) < MAX_CLASSES:
        raise ValueError(
            f"found {len(classes)} classes besides background; allowed are 1 to {MAX_CLASSES - 1}: choose them with "
            "--classes"
        )
    return classes, [label for label in labels if label not in classes]


def find_colours(found: Mapping[str, Annotations], classes: Sequence[str]) -> list[Colour] | None:
    """The source's colours of background and classes; None unless every class has one of its own."""
    by_label = {"background": (0, 0, 0)}
    for annotations in found.values():
        by_label |= annotations.colours
    colours = [by_label[name] for name in ["background", *classes] if name in by_label]
    # Beside colours, 'ignore' would be no class.
    return colours if len(set(colours)) == len(classes) + 1 and IGNORE_NAME not in classes else None


def check_output(output: Path, settings: Mapping[str, Any], jobs: Sequence[Job]) -> None:
    """Raise ValueError where `output` holds anything but what an earlier run of the same command has left."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / SETTINGS).is_file():
        raise ValueError(f"{output}: is there already, and not from this command; choose another --output")
    earlier = load_json(output / SETTINGS)
    differing = [
        f"{name}: {earlier.get(name)} → {value}"
        for name, value in settings.items()
        if earlier.get(name) != value
    ]
    if differing:
        remedy = "choose another --output, or delete it"
        if {**settings, "classes": None} == {**earlier, "classes": None}:
            remedy = f"keep to its classes with `--classes {shlex.join(earlier['classes'])}`, {remedy}"
        raise ValueError(f"{output}: was prepared otherwise ({'; '.join(differing)}, there → here); {remedy}")
    expected = {path for job in jobs for path in (job.image, job.mask)}
    others = sorted({path for path in output.glob("*/*/*") if not path.name.startswith(".")} - expected)
    if others:
        raise ValueError(
            f"{others[0]}: is none of these images ({len(others)} such files); delete them, or choose another --output"
        )


def write_sample(job: Job) -> str | None:
    """Write mask and image unless they are made from the files that are there; returns what is wrong, in a line."""
    sample = job.sample
    try:
        stamp = _stamp(sample)
        if _is_done(job, stamp):
            return None
        mask = sample.draw(job.ids)
        problem = describe_size(sample.image, image_size(sample.image), sample.sources[-1], mask.shape[::-1])
        if problem is not None:
            raise DataError(problem)
        job.image.parent.mkdir(parents=True, exist_ok=True)
        job.image.unlink(missing_ok=True)
        if job.link:
            job.image.symlink_to(sample.image.resolve())
        else:
            with sample.image.open("rb") as source, open_atomic(job.image) as target:
                shutil.copyfileobj(source, target)
        image = Image.fromarray(mask)
        image.putpalette(job.palette)
        note = PngInfo()
        note.add_text(STAMP, stamp)
        with open_atomic(job.mask) as file:  # last: where it is, the sample is whole
            image.save(file, "PNG", pnginfo=note)
    except (DataError, OSError) as error:
        return explain(error)
    return None


def _stamp(sample: Sample) -> str:
    """What changes with the files that a sample is made from, whichever way their clocks went."""
    stats = [path.stat() for path in (sample.image, *sample.sources)]
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _is_done(job: Job, stamp: str) -> bool:
    """Whether an earlier run has made both files, from what still is there."""
    if not (job.image.exists() and job.image.is_symlink() == job.link):
        return False
    try:
        with Image.open(job.mask) as mask:
            return mask.info.get(STAMP) == stamp
    except UNDECODABLE:
        return False


def write_classes(output: Path, classes: Sequence[str], colours: Sequence[Colour] | None) -> Path:
    """Write classes.yaml where there are colours, otherwise classes.txt; returns its path.

    Raises ValueError for names that make no list of classes.
    """
    names = ["background", *classes]
    if colours is None:
        path, text = output / "classes.txt", "".join(f"{name}\n" for name in names)
    else:
        entries = [{"name": name, "color": [*colour]} for name, colour in zip(names, colours, strict=True)]
        path = output / "classes.yaml"
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_atomic(path, text)
    read_class_list(output, "")
    return path


def run(args: argparse.Namespace) -> list[str]:
    """Prepare everything that the command line names; returns a line for every sample that could not be."""
    if args.source.resolve() in args.output.resolve().parents:
        raise ValueError(
            f"--output {args.output}: lies in {args.source}, which is searched; choose another place"
        )
    found = read_source(args)
    splits = split_samples(found, args.val_fraction, args.output)
    classes, left_out = choose_classes(found, args.classes)
    colours = find_colours(found, classes)
    palette = np.array(make_palette(256), np.uint8)
    if colours is not None:
        palette[: len(colours)] = colours
    ids = {name: class_id for class_id, name in enumerate(classes, start=1)}
    output: Path = args.output
    jobs = []
    for split, samples in splits.items():
        for sample in samples:
            if sample.image.suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(
                    f"{sample.image}: allowed are {', '.join(IMAGE_SUFFIXES)}; convert the image"
                )
            image = output / "images" / split / f"{sample.image_id}{sample.image.suffix}"
            mask = output / "masks" / split / f"{sample.image_id}.png"
            jobs.append(Job(sample, ids, image, mask, palette.tobytes(), args.link))
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
