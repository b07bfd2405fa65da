"""Data sets, tasks, and the images and labels of every step.

A data set is a module with `CLASSES` and `PALETTE` (index = data set id, background at 0) whose splits answer
`ids`, `read` and `read_label`; adding one is one file and one line in `open_dataset`.
"""

from pathlib import Path

from datasets import ade20k, cityscapes, folder, voc
from datasets.file_dataset import FileDataset
from datasets.shapes import ShapesDataset

SegmentationDataset = FileDataset | ShapesDataset
_OPEN_SPLIT = {
    "voc": voc.open_split,
    "ade20k": ade20k.open_split,
    "cityscapes": cityscapes.open_split,
    "folder": folder.open_split,
}


def open_dataset(name: str, root: Path, split: str, problems: list[str] | None = None) -> FileDataset:
    """Open the 'train' or 'val' split of a data set that lies in files under `root`.

    Raises FileNotFoundError or ValueError naming what is missing there. With `problems`, single images that lack
    a mask, the other way round, or have an impossible name are added there and left out instead.
    """
    return _OPEN_SPLIT[name](root, split, problems)
