"""The folder that is prepared: what it may hold before, its images, masks and list of classes."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets.class_list import read_class_list
from datasets.file_dataset import describe_size
from datasets.unreadable import explain
from tools.prepare.samples import Sample, image_size, load_json
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
    ids: Mapping[str, int]
    image: Path
    mask: Path
    palette: bytes
    link: bool


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
