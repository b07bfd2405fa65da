"""The folder that is prepared: what it may hold before, its images, masks and list of classes."""

import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets.class_list import read_class_list
from datasets.file_dataset import describe_aspect, read_sound_image
from datasets.folder import IMAGE_SUFFIXES
from datasets.listing import SPLITS
from datasets.unreadable import explain
from tools.prepare.checked import load_json
from tools.prepare.samples import Drawing, Ids, Sample, image_size
from utils.errors import DataError
from utils.files import open_atomic, write_atomic
from utils.images import UNDECODABLE, Colour

SETTINGS = "prepared.json"
"""What DIR was made from, and how."""
STAMP = "made from"
"""Text in a mask's PNG: bytes and times of the files that it was made from."""


class Job(NamedTuple):
    """One sample, and where it is to lie; palette: RGB bytes by class id."""

    sample: Sample
    ids: Ids
    image: Path
    mask: Path
    palette: bytes
    link: bool


class Finding(NamedTuple):
    """What is wrong with a sample, what is to be said of it, and the class ids that its mask shows."""

    problems: list[str]
    notes: list[str]
    shown: frozenset[int]


def check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError where `output` is there already and was not prepared by the same command."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / SETTINGS).is_file():
        raise ValueError(f"{output}: is there already, and not from this command; choose another --output")
    earlier = load_json(output / SETTINGS)
    if not isinstance(earlier, dict):
        raise ValueError(f"{output / SETTINGS}: is damaged; choose another --output, or delete it")
    differing = [
        f"{name}: {earlier.get(name)} → {value}"
        for name, value in settings.items()
        if earlier.get(name) != value
    ]
    if differing:
        remedy = "choose another --output, or delete it"
        if {**settings, "classes": None} == {**earlier, "classes": None} and isinstance(
            earlier["classes"], list
        ):
            remedy = (
                f"keep to its classes with `--classes {shlex.join(map(str, earlier['classes']))}`, {remedy}"
            )
        raise ValueError(f"{output}: was prepared otherwise ({'; '.join(differing)}, there → here); {remedy}")


def check_files(output: Path, jobs: Sequence[Job], left_out: Collection[str] = ()) -> list[Path]:
    """The files in `output` of images that are `left_out` (ids) now.

    Raises ValueError where it holds any others that an earlier run of the same command has not left.
    """
    expected = {path for job in jobs for path in (job.image, job.mask)}
    found = {path for path in output.glob("*/*/*") if not path.name.startswith(".")} - expected
    stale = sorted(path for path in found if path.stem in left_out and path.parent.name in SPLITS)
    others = sorted(found.difference(stale))
    if others:
        raise ValueError(
            f"{others[0]}: is none of these images ({len(others)} such files); delete them, or choose another --output"
        )
    return stale


def check_sample(job: Job) -> Finding:
    """Read and draw everything of a sample, and write nothing; what an earlier run has made from the same is sound."""
    sample = job.sample
    if sample.draw is None:
        return Finding([*sample.problems], [], frozenset())
    try:
        if sample.image.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{sample.image}: allowed are {', '.join(IMAGE_SUFFIXES)}; convert the image")
        if not sample.problems:
            earlier = _shown_before(job, _stamp(sample))
            if earlier is not None:
                return Finding([], [], earlier)
        found = _read_and_draw(job)
    except (DataError, OSError) as error:
        found = Finding([explain(error)], [], frozenset())
    return found._replace(problems=[*sample.problems, *found.problems])


def _read_and_draw(job: Job) -> Finding:
    sample = job.sample
    width, height = image_size(sample.image)
    problem = _describe_stated(sample, width, height) or describe_aspect(sample.image, (width, height))
    if problem is not None:
        raise DataError(problem)
    read_sound_image(sample.image)
    drawing = draw(sample, job.ids, (height, width))
    shown = frozenset(np.unique(drawing.mask).tolist())
    return Finding(drawing.problems, drawing.notes, shown)


def _describe_stated(sample: Sample, width: int, height: int) -> str | None:
    """What is wrong with the size that the source gives, if anything."""
    stated = sample.stated[0] or width, sample.stated[1] or height
    if stated == (width, height):
        return None
    hint = ""
    if stated == (height, width):
        hint = " (turned upright as its EXIF orientation says; it was annotated as it is stored)"
    return (
        f"{sample.sources[-1]}: drawn on an image of {stated[0]}x{stated[1]} (width x height), but {sample.image} is "
        f"{width}x{height}{hint}; restore the image, or annotate it anew"
    )


def draw(sample: Sample, ids: Ids, size: tuple[int, int]) -> Drawing:
    """The mask of a sample, whose (height, width) must be the image's; raises DataError or OSError."""
    if sample.draw is None:
        raise DataError(f"{sample.image}: cannot be drawn")
    return sample.draw(ids, size)


def write_sample(job: Job) -> str | None:
    """Write mask and image unless they are made from the files that are there; returns what is wrong, in a line."""
    sample = job.sample
    try:
        stamp = _stamp(sample)
        if _shown_before(job, stamp) is not None:
            return None
        width, height = image_size(sample.image)
        mask = draw(sample, job.ids, (height, width)).mask
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
        note.add_text("shows", " ".join(map(str, np.unique(mask).tolist())))
        with open_atomic(job.mask) as file:  # last: where it is, the sample is whole
            image.save(file, "PNG", pnginfo=note)
    except (DataError, OSError) as error:
        return explain(error)
    return None


def _stamp(sample: Sample) -> str:
    """What changes with the files that a sample is made from, whichever way their clocks went."""
    stats = [path.stat() for path in (sample.image, *sample.sources)]
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _shown_before(job: Job, stamp: str) -> frozenset[int] | None:
    """The class ids of the mask if an earlier run has made both files from what still is there, or None."""
    if not (job.image.exists() and job.image.is_symlink() == job.link):
        return None
    try:
        with Image.open(job.mask) as mask:
            is_same = mask.info.get(STAMP) == stamp
            return frozenset(map(int, mask.info.get("shows", "").split())) if is_same else None
    except UNDECODABLE:
        return None


def write_classes(output: Path, classes: Sequence[str], colours: Sequence[Colour] | None) -> Path:
    """Write classes.yaml where there are colours, otherwise classes.txt; returns its path.

    Raises ValueError for names that make no list of classes, or another one when they are read again.
    """
    names = ["background", *classes]
    if colours is None:
        path, text = output / "classes.txt", "".join(f"{name}\n" for name in names)
    else:
        entries = [{"name": name, "color": [*colour]} for name, colour in zip(names, colours, strict=True)]
        path = output / "classes.yaml"
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_atomic(path, text)
    read = read_class_list(output, "")
    if [*read.names] != names or (colours is not None and [*(read.colours or ())] != [*colours]):
        raise ValueError(f"{path}: is read as {[*read.names]}, but {names} were written; rename the labels")
    return path
