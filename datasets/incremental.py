"""A step's training images with the labels that the step may see, and the validation images."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.masks import remap
from datasets.selection import select_images as select_images  # also the public place of the function
from datasets.source import SegmentationDataset
from datasets.tasks import Step, Task
from datasets.transforms import EvaluateTransform, TrainTransform
from datasets.unreadable import explain
from utils.errors import DataError
from utils.images import UInt8Array
from utils.labels import IGNORE_INDEX, SALIENT

Table = npt.NDArray[np.uint8]


def select_training_images(
    image_classes: Mapping[str, Collection[int]],
    task: Task,
    step: Step,
    setting: str,
    train_on: str,
    lists: Sequence[Collection[str]] | None = None,
) -> list[str]:
    """Ids of the images that step `step` trains on: its own, or with train_on='seen' those of every step so far.

    lists: the images of every step, where files give them; None selects them as `setting` says. Images that
    `image_classes` lacks, because they cannot be read, are left out.
    """
    first = 0 if train_on == "seen" else step.index
    chosen = {
        image_id
        for index in range(first, step.index + 1)
        for image_id in (
            select_images(image_classes, task, index, setting) if lists is None else lists[index]
        )
    }
    return [image_id for image_id in image_classes if image_id in chosen]


def training_table(task: Task, step: Step, train_on: str, void_label: str = "ignore") -> Table:
    """Table (256,) uint8 from data set ids to the labels of a step: its classes', or all seen ones'; else 0.

    void_label: 'ignore' keeps 255 as it is, 'background' makes it 0.
    """
    table = task.remap_table()
    labelled = task.labelled_classes(step, train_on)
    table[~np.isin(table, [*labelled, IGNORE_INDEX])] = 0
    if void_label == "background":
        table[IGNORE_INDEX] = 0
    return table


def evaluation_table(task: Task, step: Step, future: str, background: int = 0) -> Table:
    """Table (256,) uint8 from data set ids to evaluation labels: seen classes keep their contiguous ids.

    Classes not yet learned become 255 (future='ignore') or 0 ('background'). background: what data set id 0 becomes:
    0, 255 where it is void, or another label that tells it from classes that count as background.
    """
    table = task.remap_table()
    is_future = (table >= step.num_classes) & (table != IGNORE_INDEX)
    table[is_future] = IGNORE_INDEX if future == "ignore" else 0
    table[0] = background
    return table


Sample = tuple[Tensor, Tensor, str]
"""Image, label, and a line for every image that could not be read on the way; `Unreadable` decides about these, in
the main process: an error that crosses from a data worker would bring its traceback along."""


class StepDataset(Dataset[Sample]):
    """Augmented images (3,crop,crop) and labels (crop,crop) of one step, uint8.

    Indexed by (epoch, index): what a sample looks like depends on (seed, step, epoch, index) and on nothing
    else, so neither on the number of workers nor on where a run was resumed. An image that cannot be read is
    replaced by the next one of the step.

    memory_ids: those of the images that come from earlier steps; memory_table: their labels', None for `table`.
    read_salient: gives a mask of what is salient, where background that is so is labelled SALIENT.
    """

    def __init__(
        self,
        source: SegmentationDataset,
        image_ids: Sequence[str],
        table: Table,
        transform: TrainTransform,
        seed: int,
        step: int,
        memory_ids: Collection[str] = (),
        memory_table: Table | None = None,
        read_salient: Callable[[str], UInt8Array] | None = None,
    ) -> None:
        self.source = source
        self.image_ids = image_ids
        self.table = table
        self.memory_ids = frozenset(memory_ids)
        self.memory_table = table if memory_table is None else memory_table
        self.transform = transform
        self.read_salient = read_salient
        self.seed = seed
        self.step = step

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        problems: list[str] = []
        for candidate in (*range(index, len(self)), *range(index)):
            image_id = self.image_ids[candidate]
            found = _read(self.source, image_id, self.read_salient)
            if not isinstance(found, str):
                image, label, salient = found
                generator = make_generator(self.seed, self.step, epoch, index)
                label = remap(label, self.memory_table if image_id in self.memory_ids else self.table)
                if salient is not None:
                    label = np.where((label == 0) & (salient > 0), np.uint8(SALIENT), label)
                return *self.transform(image, label, generator), "\n".join(problems)
            problems.append(found)
        return _blank(self.transform.crop_size, "\n".join(problems))


class ValidationDataset(Dataset[Sample]):
    """One rank's share of the validation images with their evaluation labels, uint8.

    An image that cannot be read is black, with a label that no pixel of counts.
    """

    def __init__(
        self,
        source: SegmentationDataset,
        image_ids: Sequence[str],
        table: Table,
        transform: EvaluateTransform,
    ) -> None:
        self.source = source
        self.image_ids = image_ids
        self.table = table
        self.transform = transform

    @property
    def shows_background(self) -> bool:
        """Whether background can occur in the labels; a class that cannot has no IoU."""
        return any(self.table[dataset_id] == 0 for dataset_id in self.source.label_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        found = _read(self.source, self.image_ids[index])
        if isinstance(found, str):
            return _blank(self.transform.crop_size, found)
        image, label, _ = found
        return *self.transform(image, remap(label, self.table)), ""


def _read(
    source: SegmentationDataset,
    image_id: str,
    read_salient: Callable[[str], UInt8Array] | None = None,
) -> tuple[UInt8Array, UInt8Array, UInt8Array | None] | str:
    """Image, label and, where it is asked for, what is salient, or in a line why they cannot be read."""
    try:
        image, label = source.read(image_id)
        if read_salient is None:
            return image, label, None
        salient = read_salient(image_id)
        if salient.shape != label.shape:
            sizes = [f"{x.shape[1]}x{x.shape[0]}" for x in (salient, label)]
            raise DataError(
                f"{image_id}: its mask of data.saliency is {sizes[0]} (width x height), its label {sizes[1]}; they "
                "must be equal"
            )
        return image, label, salient
    except (DataError, OSError) as error:
        return explain(error)


def _blank(size: int, problem: str) -> Sample:
    """A sample of which no pixel counts."""
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    return image, torch.full((size, size), IGNORE_INDEX, dtype=torch.uint8), problem


def make_generator(*key: int) -> torch.Generator:
    """Return a generator that depends on the key alone; equal keys give equal numbers."""
    # The length is part of the key: SeedSequence takes (1, 2) and (1, 2, 0) for the same.
    state = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
