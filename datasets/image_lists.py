"""The images of every step from files, in the formats that codebases of the field publish."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.listing import read_lines
from datasets.selection import select_images
from datasets.source import SegmentationDataset
from datasets.tasks import Task
from utils.errors import DataError

FIELD = "data.image_lists"
EXPECTED = (
    "expected step_0.txt, step_1.txt, … (an id a line, as train_images/ of a run), train-0.npy, train-1.npy, … (MiB: "
    "places in the data set's list), SETTING_TASK_train_00.npy, … (DKD: file names), or train_cls.txt (SSUL: an image "
    "and its classes a line)"
)


class ImageLists(NamedTuple):
    """Image ids of every step, and of the memory with which each step trains, None where no file says."""

    steps: list[list[str]]
    memories: list[list[str]] | None


def read_image_lists(
    folder: Path, dataset: SegmentationDataset, task: Task, setting: str, needs_base: bool = True
) -> ImageLists:
    """Read the lists of a folder, in the order of the data set's training split.

    needs_base: whether step 0, which nobody trains where a run starts from another's, must have a list.
    Raises FileNotFoundError or DataError naming the field and the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{FIELD}: {folder}: no such folder; {EXPECTED}")
    names = {path.name for path in folder.iterdir()}
    found = {what: files for what, files in _list_files(names, task, setting).items() if files}
    by_classes = "train_cls.txt" in names
    if len(found) + by_classes != 1:
        several = [next(iter(files.values())) for files in found.values()] + ["train_cls.txt"] * by_classes
        problem = f"holds lists of several formats ({', '.join(several)}); leave one" if several else EXPECTED
        raise DataError(f"{FIELD}: {folder}: {problem}")
    known = frozenset(dataset.ids)
    if by_classes:
        image_classes = _read_classes(folder / "train_cls.txt", known)
        chosen = [set(select_images(image_classes, task, step, setting)) for step in task.steps]
    else:
        ((read, files),) = found.items()
        _check_steps(folder, files, task, needs_base)
        chosen = [
            set(_READERS[read](folder / files[step.index], dataset, known)) if step.index in files else set()
            for step in task.steps
        ]
    steps = [[image_id for image_id in dataset.ids if image_id in ids] for ids in chosen]
    memories = _read_memories(folder / "memory.json", task, known) if "memory.json" in names else None
    return ImageLists(steps, memories)


def _list_files(names: set[str], task: Task, setting: str) -> dict[str, dict[int, str]]:
    """Format -> the file of every step that has one."""
    patterns = {
        "text": r"step_(\d+)\.txt",
        "indices": r"train-(\d+)\.npy",
        "names": rf"{re.escape(f'{setting}_{task.name}')}_train_(\d+)\.npy",
    }
    matches = {
        what: [match for name in sorted(names) if (match := re.fullmatch(pattern, name))]
        for what, pattern in patterns.items()
    }
    return {what: {int(match[1]): match[0] for match in found} for what, found in matches.items()}


def _check_steps(folder: Path, files: Mapping[int, str], task: Task, needs_base: bool) -> None:
    wanted = {step.index for step in task.steps}
    missing = sorted(wanted - files.keys() - (set() if needs_base else {0}))
    extra = sorted(files.keys() - wanted)
    if missing or extra:
        what = (
            f"no list for step {missing[0]}" if missing else f"a list for step {extra[0]} ({files[extra[0]]})"
        )
        raise DataError(
            f"{FIELD}: {folder}: {what}, but task {task.name} has steps 0 to {len(wanted) - 1}; take the lists of this "
            "task, or the task of these lists"
        )


def _find(path: Path, names: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the ids of names, which may have folders and suffixes; raises DataError for unknown ones."""
    ids = [name if name in known else Path(name).stem for name in names]
    unknown = [name for name, image_id in zip(names, ids, strict=True) if image_id not in known]
    if unknown:
        raise DataError(
            f"{FIELD}: {path}: {len(unknown)} of {len(names)} images are not in the training split of {len(known)}, "
            f"such as {unknown[0]!r}; take lists of this data set, and leave data.train_ids out"
        )
    return ids


def _read_text(path: Path, dataset: SegmentationDataset, known: Collection[str]) -> list[str]:
    return _find(path, [line.strip() for line in _read_lines(path) if line.strip()], known)


def _read_lines(path: Path) -> list[str]:
    try:
        return read_lines(path)
    except DataError as error:
        raise DataError(f"{FIELD}: {error}") from error


def _read_indices(path: Path, dataset: SegmentationDataset, known: Collection[str]) -> list[str]:
    """Places in the whole list of the split, from 0 on (MiB, EWF, RCIL, NeST)."""
    indices = _load(path)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise DataError(
            f"{FIELD}: {path}: expected a vector of whole numbers, found {indices.dtype} of shape {indices.shape}"
        )
    if getattr(dataset, "is_part", False):
        raise DataError(
            f"{FIELD}: {path}: its numbers are places in the whole training split, of which data.train_ids takes a "
            "part; leave data.train_ids out, or give lists of ids"
        )
    if indices.size and not 0 <= indices.min() <= indices.max() < len(dataset.ids):
        raise DataError(
            f"{FIELD}: {path}: holds places {indices.min()} to {indices.max()}, but the training split has "
            f"{len(dataset.ids)} images, 0 to {len(dataset.ids) - 1}; take lists of this data set"
        )
    return [dataset.ids[index] for index in indices.tolist()]


def _read_names(path: Path, dataset: SegmentationDataset, known: Collection[str]) -> list[str]:
    """File names, of which the first word of each is the image's (DKD)."""
    names = _load(path)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{FIELD}: {path}: expected a vector of texts, found {names.dtype} of shape {names.shape}"
        )
    return _find(path, [str(name).split()[0] for name in names if str(name).strip()], known)


def _load(path: Path) -> np.ndarray:
    """Read an array; no code in it is executed."""
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
        return array
    except (ValueError, OSError, EOFError) as error:
        told = " ".join(str(error).split())
        raise DataError(
            f"{FIELD}: {path}: not an array without pickled objects ({told}); write the ids into step_0.txt, …"
        ) from error


_READERS: dict[str, Callable[[Path, SegmentationDataset, Collection[str]], list[str]]] = {
    "text": _read_text,
    "indices": _read_indices,
    "names": _read_names,
}


def _read_classes(path: Path, known: Collection[str]) -> dict[str, frozenset[int]]:
    """Image id -> data set ids of its classes; the file counts classes from 0, background left out (SSUL)."""
    shown: dict[str, frozenset[int]] = {}
    for number, line in enumerate(_read_lines(path), 1):
        if not line.strip():
            continue
        name, *classes = line.split()
        if not all(re.fullmatch(r"\d+", c) and int(c) < 255 for c in classes):
            raise DataError(
                f"{FIELD}: {path}:{number}: expected NAME c1 c2 …, classes from 0 on, found {line!r}"
            )
        shown[name] = frozenset(int(c) + 1 for c in classes)
    ids = _find(path, list(shown), known)
    return dict(zip(ids, shown.values(), strict=True))


def _read_memories(path: Path, task: Task, known: Collection[str]) -> list[list[str]]:
    """The memory with which each step trains: memory_list of step_K (SSUL, IPSeg, BARM)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: [str(image) for image in entry["memory_list"]] for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{FIELD}: {path}: expected {{"step_1": {{"memory_list": [names]}}, …}} ({type(error).__name__}: {error})'
        ) from error
    missing = [f"step_{step.index}" for step in task.steps[1:] if f"step_{step.index}" not in lists]
    if missing:
        raise DataError(
            f"{FIELD}: {path}: has no {', '.join(missing)}, which task {task.name} needs; complete or remove it"
        )
    return [[], *(_find(path, lists[f"step_{step.index}"], known) for step in task.steps[1:])]
