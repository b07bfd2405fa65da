"""Data sets, tasks, and the images and labels of every step.

A data set is a module with a `SOURCE`: its class names, colours and published orders, its options, where its files lie
and how to get them. Adding one is one file and one line in `DATASETS`.
"""

from datasets import ade20k, cityscapes, folder, shapes, voc
from datasets.source import Source

DATASETS: dict[str, Source] = {
    "voc": voc.SOURCE,
    "ade20k": ade20k.SOURCE,
    "cityscapes": cityscapes.SOURCE,
    "folder": folder.SOURCE,
    "shapes": shapes.SOURCE,
}
"""Every data set by its `data.name`."""
