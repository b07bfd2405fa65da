"""Lists of image ids, which say what of a split is used: a text file with one id a line; and their digest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from datasets.file_dataset import FileDataset
from datasets.listing import read_lines
from utils.errors import DataError

MAX_NAMED = 10


def digest_ids(ids: Iterable[str]) -> str:
    """SHA-256 of image ids as a set: their UTF-8 lines, sorted; equal ones have the same images, in whatever order."""
    return hashlib.sha256("".join(f"{image_id}\n" for image_id in sorted(set(ids))).encode()).hexdigest()


def keep_listed(
    dataset: FileDataset, path: Path, field: str, problems: list[str] | None = None
) -> FileDataset:
    """The samples of a split that a list names, in the order of the list; blank lines are ignored.

    field: what in the config names the list, for the errors.

    Raises (errors are only added to `problems`, where given, and the ids left out):
        FileNotFoundError: there is no such list.
        DataError: it is not UTF-8, names no id, one twice, or one that the split does not have.
    """
    try:
        ids = [line.strip() for line in read_lines(path) if line.strip()]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{field}: {path}: no such file; give a text file with an image id a line, or null for all images"
        ) from None
    except DataError as error:
        raise DataError(f"{field}: {error}") from error
    if not ids:
        raise DataError(f"{field}: {path}: names no image; list an id a line, or set the field to null")
    wrong = [problem for problem in (_describe_repeated(ids), _describe_unknown(ids, dataset)) if problem]
    told = [f"{field}: {path}: {problem}" for problem in wrong]
    if told and problems is None:
        raise DataError("\n".join(told))
    if problems is not None:
        problems += told
    samples = {image_id: dataset.samples[image_id] for image_id in ids if image_id in dataset.samples}
    return replace(dataset, samples=samples, is_part=True)


def _describe_repeated(ids: list[str]) -> str:
    """What is wrong where ids stand twice; '' where none does."""
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    return f"{_name(repeated)} given more than once; list every id once" if repeated else ""


def _describe_unknown(ids: list[str], dataset: FileDataset) -> str:
    """What is wrong where ids are none of the split's; '' where all are."""
    unknown = [image_id for image_id in dict.fromkeys(ids) if image_id not in dataset.samples]
    if not unknown:
        return ""
    split = f"{dataset.split} split of {dataset.name}"
    examples = f" (such as {next(iter(dataset.samples))!r})" if dataset.samples else ""
    told = f"{_name(unknown)} not in the {split}; allowed are its {len(dataset.samples)} ids{examples}"
    if any(Path(image_id).stem in dataset.samples for image_id in unknown):
        told += "; an id is the name of a file without folder and suffix"
    return told


def _name(ids: list[str]) -> str:
    """'the id 'a' is', or ''a', 'b' and 3 more are', as the subject of a sentence."""
    if len(ids) == 1:
        return f"the id {ids[0]!r} is"
    named = ", ".join(map(repr, ids[:MAX_NAMED]))
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return f"the ids {named}{more} are"
