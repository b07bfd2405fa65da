"""Bring annotated images into the layout of data.name=folder.

FORMAT is what the annotations are written in; `FORMAT --help` lists its options. DIR gets images/{train,val},
masks/{train,val} (PNG, pixel = class id) and a list of classes.

Everything is read and drawn before anything is written. All problems are told together; then nothing is left behind.
--skip-bad leaves out the images that they name.

Where objects overlap, smaller ones lie over larger ones. Crowds (COCO), what no segment covers (panoptic) and void
(Cityscapes) are ignored (255); what no shape or instance covers is background (0), and so is every label that --classes
leaves out. A rerun of the same command goes on where it stopped; what has been added or changed since is done anew.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datasets import folder
from datasets.class_index import map_in_processes
from datasets.file_dataset import check_libraries
from datasets.listing import SPLITS
from tools.prepare.choice import choose_classes, find_colours, find_unused, name_samples, split_samples
from tools.prepare.formats import FORMATS
from tools.prepare.output import (
    SETTINGS,
    Finding,
    Job,
    check_files,
    check_sample,
    check_settings,
    write_classes,
    write_sample,
)
from tools.prepare.samples import Sample
from utils.arguments import finish, help_texts, new_parser
from utils.errors import DataError
from utils.files import write_atomic
from utils.images import Colour, make_palette

EXAMPLES = "".join(f"python -m tools.prepare_folder {entry.example}\n" for entry in FORMATS.values())
SOURCES = ("source", "images", "masks", "val", "val_images", "val_masks")
"""Arguments that name the source."""


def run(args: argparse.Namespace) -> list[str]:
    """Prepare everything that the command line names; raises ValueError or OSError with a line for every problem."""
    output: Path = args.output
    if args.source.resolve() in output.resolve().parents:
        raise ValueError(f"--output {output}: lies in {args.source}, which is searched; choose another place")
    check_libraries()
    found = FORMATS[args.format].read(args)
    outside = [problem for annotations in found.values() for problem in annotations.problems]
    named, notes = name_samples(found)
    notes = [*(note for annotations in found.values() for note in annotations.notes), *notes]
    notes += find_unused(found, output)
    with _told_with_problems(outside, named):
        classes, more = choose_classes(found, args.classes)
    colours = find_colours(found, classes)
    settings = {
        "format": args.format,
        "sources": [str(value.resolve()) for name, value in vars(args).items() if name in SOURCES and value],
        "val_fraction": None if "val" in found else args.val_fraction,
        "classes": classes,
    }
    check_settings(output, settings)
    with _told_with_problems(outside, named):
        splits = split_samples(named, args.val_fraction, output)
    jobs = plan_jobs(args, splits, classes, colours)
    findings = list(map_in_processes(check_sample, jobs, args.num_workers, "checking", "image"))
    notes += [note for finding in findings for note in finding.notes]
    bad = _refuse(args.skip_bad, outside, jobs, findings)
    if bad:
        named = {split: [s for s in samples if s.image_id not in bad] for split, samples in named.items()}
        splits = split_samples(named, args.val_fraction, output)
        jobs = plan_jobs(args, splits, classes, colours)
    shown = frozenset[int]().union(*(finding.shown for finding in findings if not finding.problems))
    absent = [name for class_id, name in enumerate(classes, start=1) if class_id not in shown]
    notes += [*more, *([f"classes without a pixel in any mask: {', '.join(absent)}"] if absent else [])]
    class_list = _write(args, settings, jobs, classes, colours, check_files(output, jobs, bad))
    counts = " and ".join(f"{len(samples)} {split}" for split, samples in splits.items())
    print(f"{output}: {counts} images, {len(classes)} classes ({class_list.name}): {', '.join(classes)}")
    print("".join(f"{line}\n" for line in notes), end="")
    return []


@contextmanager
def _told_with_problems(outside: Sequence[str], named: Mapping[str, Sequence[Sample]]) -> Iterator[None]:
    """Put the problems known so far before a ValueError, which may come of them."""
    try:
        yield
    except ValueError as error:
        known = [problem for samples in named.values() for sample in samples for problem in sample.problems]
        raise ValueError("\n".join([*outside, *known, str(error)])) from error


def _refuse(
    skip_bad: bool, outside: Sequence[str], jobs: Sequence[Job], findings: Sequence[Finding]
) -> set[str]:
    """The ids of images with problems, which are told; raises DataError unless they are to be left out.

    outside: problems that belong to no image.
    """
    bad = {job.sample.image_id for job, finding in zip(jobs, findings, strict=True) if finding.problems}
    lines = list(dict.fromkeys([*outside, *(line for finding in findings for line in finding.problems)]))
    if not lines:
        return bad
    if outside or not skip_bad:
        remedy = "mend them, or leave out the images with --skip-bad"
        if outside:
            remedy = (
                f"mend them (--skip-bad cannot help with the first {len(outside)}, which belong to no image)"
            )
        count = f"nothing was written. Problems: {len(lines)}, in {len(bad)} of {len(jobs)} images"
        raise DataError("\n".join([f"{count}; {remedy}:", *lines]))
    print("\n".join([f"{len(bad)} of {len(jobs)} images are left out (--skip-bad):", *lines]))
    return bad


def _write(
    args: argparse.Namespace,
    settings: Mapping[str, object],
    jobs: Sequence[Job],
    classes: Sequence[str],
    colours: Sequence[Colour] | None,
    stale: Sequence[Path],
) -> Path:
    """Write all files and read the folder again; returns the list of classes. A folder that fails anew is removed."""
    output: Path = args.output
    is_new = not output.exists() or not any(output.iterdir())
    try:
        for path in stale:
            path.unlink()
        write_atomic(output / SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        class_list = write_classes(output, classes, colours)
        results = map_in_processes(write_sample, jobs, args.num_workers, "preparing", "image")
        problems = [problem for problem in results if problem is not None]
        if problems:
            raise DataError("\n".join([f"{len(problems)} images could not be prepared:", *problems]))
        _read_again(output, jobs)
    except (ValueError, OSError):
        if is_new:
            shutil.rmtree(output, ignore_errors=True)
        raise
    return class_list


def _read_again(output: Path, jobs: Sequence[Job]) -> None:
    """Raise DataError where data.name=folder finds other images than were written."""
    for split in SPLITS:
        written = {job.sample.image_id for job in jobs if job.mask.parent.name == split}
        read = set(folder.open_split(output, split).ids)
        if read != written:
            wrong = sorted(read ^ written)
            raise DataError(f"{output}: {split} is read with other images than were written: {wrong[:10]}")


def plan_jobs(
    args: argparse.Namespace,
    splits: Mapping[str, Sequence[Sample]],
    classes: Sequence[str],
    colours: Sequence[Colour] | None,
) -> list[Job]:
    """A job for every sample."""
    palette = np.array(make_palette(256), np.uint8)
    if colours is not None:
        palette[: len(colours)] = colours
    ids = {name: class_id for class_id, name in enumerate(classes, start=1)}
    jobs = []
    for split, samples in splits.items():
        for sample in samples:
            image = args.output / "images" / split / f"{sample.image_id}{sample.image.suffix}"
            mask = args.output / "masks" / split / f"{sample.image_id}.png"
            jobs.append(Job(sample, ids, image, mask, palette.tobytes(), args.link))
    return jobs


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
    for name in FORMATS:
        _add_format(formats, name)
    return parser


def _add_format(formats: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str) -> None:
    """Add the parser of a format."""
    entry = FORMATS[name]
    description = f"Bring {entry.what} into the layout of data.name=folder."
    example = f"python -m tools.prepare_folder {entry.example}"
    parser = formats.add_parser(name, help=entry.what, **help_texts(description, example))
    source = parser.add_argument_group("input")
    entry.add_arguments(source)
    if entry.may_lack_val:
        source.add_argument(
            "--val-fraction",
            type=parse_fraction,
            default=0.1,
            metavar="F",
            help="share of the images that becomes val where the source has no such split, by the hashes of their ids; "
            "default: 0.1",
        )
    else:
        parser.set_defaults(val_fraction=None)
    source.add_argument(
        "--allow-outside",
        action="store_true",
        help="take images that an annotation names outside the folder given",
    )
    source.add_argument(
        "--skip-bad", action="store_true", help="leave out images with problems, instead of refusing all"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new folder, the later data.root"
    )
    output.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="labels that become classes, in the order of their ids; default: all, in the order of the source's list, "
        "or by alphabet where it has none",
    )
    output.add_argument("--link", action="store_true", help="link the images instead of copying them")
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="processes that draw masks; default: 2"
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
    """The command line; returns the exit status: 0, or 2 where something is wrong."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return finish(parser, lambda: run(args), "could not be prepared")


if __name__ == "__main__":
    raise SystemExit(main())
