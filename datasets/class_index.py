"""Which classes every mask of a split shows: read once in parallel, validated, and cached."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets.file_dataset import FileDataset, describe_size
from datasets.long_side import reduce_label, reduced_shape
from datasets.masks import MaskCoding, distinct_numbers
from datasets.unreadable import MAX_NAMED, Unreadable, explain
from utils.console import progress_bar
from utils.documents import load_json
from utils.errors import DataError
from utils.files import require_regular, write_atomic
from utils.images import UNDECODABLE, describe_mask_format, describe_too_large, describe_undecodable
from utils.labels import IGNORE_INDEX
from utils.signals import held_back, leave_signals_to_parent

logger = logging.getLogger(__name__)
Job = TypeVar("Job")
Result = TypeVar("Result")

CACHE_VERSION = 6
STAMP = 8
"""Numbers that change with the two files of a sample."""
_EXIF_ORIENTATION = 0x0112


class MaskEntry(NamedTuple):
    """What is known of a valid sample: bytes, times and inodes of its files (`STAMP`), and the ids that it shows."""

    stamp: list[int]
    classes: frozenset[int]


class MaskJob(NamedTuple):
    """One mask to read, with its image. Paths are strings because those pickle faster."""

    image_path: str
    mask_path: str
    coding: MaskCoding
    long_side: int | None = None


def index_classes(
    dataset: FileDataset,
    cache_dir: Path | None,
    num_workers: int,
    progress: bool = True,
    unreadable: Unreadable | None = None,
) -> dict[str, frozenset[int]]:
    """Image id -> data set ids that its mask shows (255 left out, 0 may be in), in the order of the data set.

    A mask shows what is left of it at the data set's long side, where a small object may vanish; what is checked, sizes
    and ids, is the file.

    Masks are not read again where bytes, times (of content and of inode) and inodes of mask and image are those of
    the cache file: copying a file keeps its size and, if asked, the first of these times. A cache that cannot be read
    or written costs a logged warning, never the result.

    Args:
        cache_dir: folder of the cache file, made if needed; None keeps no cache.
        num_workers: processes that decode masks; 0 or 1 decodes in this process.
        progress: shows a progress bar while masks are read.
        unreadable: takes the samples that are wrong, which are left out; None ends with an error at any.

    Raises:
        DataError: files that cannot be reached, masks that cannot be decoded, hold an id or a colour that the data set
            has not, or differ from their image in size, where `unreadable` says so. Names up to 10 files.
    """
    if unreadable is None:
        unreadable = Unreadable("raise", 0.0, len(dataset.ids), f"{dataset.name} {dataset.split}")
    cache_path = None if cache_dir is None else cache_dir / _name_cache(dataset)
    with _no_garbage_collection():
        cached = {} if cache_path is None else _load_cache(cache_path, dataset.coding)
        stamps = {}
        for image_id, files in dataset.samples.items():
            try:
                stamps[image_id] = _stamp(*files)
            except (DataError, OSError) as error:
                unreadable.add([explain(error)])
        known = {
            image_id: cached[image_id]
            for image_id, stamp in stamps.items()
            if image_id in cached and cached[image_id].stamp == stamp
        }
    todo = [image_id for image_id in stamps if image_id not in known]
    with closing(_read_masks(dataset, todo, num_workers, progress)) as results:
        for image_id, result in zip(todo, results, strict=True):
            if isinstance(result, str):
                unreadable.add([result])
                if unreadable.is_too_many and len(unreadable.problems) >= MAX_NAMED:
                    break
            else:
                known[image_id] = MaskEntry(stamps[image_id], frozenset(result))
    # A part of a split leaves the other images' entries to runs on all of it.
    entries = cached | known if dataset.is_part else known
    if cache_path is not None and entries != cached:
        _save_cache(cache_path, entries, dataset.coding)
    unreadable.check()
    return {image_id: known[image_id].classes for image_id in stamps if image_id in known}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Make many small objects that all stay: looking for garbage among them, and all else, takes longer than that."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _stamp(*files: Path) -> list[int]:
    """What changes with the files of a sample. Raises OSError or DataError for what is no file."""
    stats = map(require_regular, files)
    return [n for stat in stats for n in (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)]


def _read_masks(
    dataset: FileDataset, image_ids: Sequence[str], num_workers: int, progress: bool
) -> Generator[list[int] | str, None, None]:
    """For every id, in order, what `_read_mask` says. Closing the generator stops the workers."""
    pairs = [dataset.samples[image_id] for image_id in image_ids]
    coding = dataset.coding  # one object, which is sent to a worker once a chunk
    jobs = [MaskJob(str(image), str(mask), coding, dataset.long_side) for image, mask in pairs]
    description = f"reading masks ({dataset.name} {dataset.split})"
    return map_in_processes(_read_mask, jobs, num_workers, description, "mask", progress)


def map_in_processes(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    num_workers: int,
    description: str,
    unit: str,
    progress: bool = True,
) -> Generator[Result, None, None]:
    """For every job, in order, what the function says, under a progress bar; 0 or 1 workers: in this process.

    Closing the generator stops the workers.
    """
    num_workers = min(num_workers, len(jobs))
    with progress_bar(description, len(jobs), unit, shown=progress) as bar:
        if num_workers <= 1:
            for job in jobs:
                yield function(job)
                bar.update()
            return
        # Four chunks a worker keep all of them busy to the end; a chunk costs one message each way.
        chunksize = max(1, min(64, len(jobs) // (4 * num_workers)))
        with ProcessPoolExecutor(num_workers, initializer=leave_signals_to_parent) as executor:
            with held_back():
                results = executor.map(function, jobs, chunksize=chunksize)
            try:
                for result in results:
                    yield result
                    bar.update()
            finally:  # the executor would wait for all that is left
                executor.shutdown(wait=False, cancel_futures=True)


def _read_mask(job: MaskJob) -> list[int] | str:
    """The data set ids that a mask shows, 255 left out; or what is wrong with it, in words."""
    path = job.mask_path
    try:
        with Image.open(path) as mask:
            problem = describe_too_large(mask.size) or describe_mask_format(mask, bool(job.coding.colours))
            if problem is not None:
                return f"{path}: {problem}"
            mask_size = mask.size
            pixels = job.coding.pixels_of(path, mask)
    except DataError as error:
        return str(error)
    except UNDECODABLE as error:
        return describe_undecodable(path, "a mask", error)
    try:
        ids = _decode_ids(job, pixels)
        if reduced_shape(pixels.shape, job.long_side) != pixels.shape[:2]:
            ids = _decode_ids(job, reduce_label(pixels, job.long_side))
    except DataError as error:
        return str(error)
    try:
        image_size = read_image_size(job.image_path)
    except UNDECODABLE as error:
        return describe_undecodable(job.image_path, "an image", error)
    too_large = describe_too_large(image_size)
    if too_large is not None:
        return f"{job.image_path}: {too_large}"
    problem = describe_size(job.image_path, image_size, path, mask_size)
    return ids if problem is None else problem


def _decode_ids(job: MaskJob, pixels: npt.NDArray[np.uint8]) -> list[int]:
    """The data set ids that a mask's pixels show, sorted, 255 left out; raises DataError where one means none."""
    if pixels.ndim == 3:
        return distinct_numbers(job.coding.decode(job.mask_path, pixels))
    # Few numbers are decoded faster than all pixels.
    numbers = np.array(distinct_numbers(pixels), np.uint8)
    return sorted({*job.coding.decode(job.mask_path, numbers).tolist()} - {IGNORE_INDEX})


def read_image_size(path: str) -> tuple[int, int]:
    """(width, height) of an image once it is turned upright; reads the header only."""
    with Image.open(path) as image:
        width, height = image.size
        # Without the check, Pillow would decode a whole PNG to look for EXIF data behind the pixels.
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in image.info else 1
    # Orientations 5 to 8 lie on their side.
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def _name_cache(dataset: FileDataset) -> str:
    """One cache file for each name, split, place and long side of a data set."""
    # Of many paths, pathlib takes several times as long.
    folders = {os.fspath(mask).rpartition(os.sep)[0] for _, mask in dataset.samples.values()}
    key = sorted(str(Path(folder).absolute()) for folder in folders)
    if dataset.long_side is not None:
        key.append(f"long side {dataset.long_side}")
    digest = hashlib.sha256(os.fsencode("\n".join(key))).hexdigest()[:16]
    return f"classes_{dataset.name}_{dataset.split}_{digest}.json"


def _digest(coding: MaskCoding) -> str:
    """A digest of what pixels mean: entries made with another coding are no entries."""
    return hashlib.sha256(repr(coding).encode()).hexdigest()[:16]


def _load_cache(path: Path, coding: MaskCoding) -> dict[str, MaskEntry]:
    """Entries of a cache file; none where there is no file, another coding, or something wrong with it."""
    try:
        content = load_json(path)
        if content["version"] != CACHE_VERSION or content["coding"] != _digest(coding):
            return {}
        ids, numbers, shown = content["ids"], content["stamps"], content["shown"]
        sets = [frozenset(classes) for classes in content["sets"]]
        if not all(classes <= coding.label_ids for classes in sets) or min(shown, default=0) < 0:
            raise ValueError("wrong ids")
        stamps = [numbers[start : start + STAMP] for start in range(0, len(numbers), STAMP)]
        entries = {
            image_id: MaskEntry(stamp, sets[place])
            for image_id, stamp, place in zip(ids, stamps, shown, strict=True)
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        logger.warning("unreadable cache of classes (%s: %s); reading the masks again", path, explain(error))
        return {}
    return entries


def _save_cache(path: Path, entries: dict[str, MaskEntry], coding: MaskCoding) -> None:
    # Few and long lists are read faster than one a mask; few masks show what no other does.
    sets = list(dict.fromkeys(entry.classes for entry in entries.values()))
    places = {classes: place for place, classes in enumerate(sets)}
    content = {
        "version": CACHE_VERSION,
        "coding": _digest(coding),
        "sets": [sorted(classes) for classes in sets],
        "ids": list(entries),
        "shown": [places[entry.classes] for entry in entries.values()],
        "stamps": [number for entry in entries.values() for number in entry.stamp],
    }
    try:
        write_atomic(path, json.dumps(content))
    except OSError as error:
        logger.warning(
            "%s: cannot write the cache of classes (%s); the next run reads all masks", path, explain(error)
        )
