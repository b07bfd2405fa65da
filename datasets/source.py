"""What every data set is: a source in the table `DATASETS`, and the splits that it opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from datasets.config import DataConfig, FilesConfig
from datasets.domains import Domains
from datasets.file_dataset import FileDataset
from datasets.id_list import keep_listed
from datasets.listing import list_files
from utils.images import Colour, UInt8Array


class SegmentationDataset(Protocol):
    """One split of a data set. `classes` and `palette` are indexed by data set id, background at 0."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> tuple[Colour, ...]: ...
    @property
    def background_is_void(self) -> bool:
        """Whether label 0 becomes 255 in evaluation."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids, in order."""

    @property
    def label_ids(self) -> frozenset[int]:
        """Data set ids that labels can show, 255 left out."""

    def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
        """Image (H,W,3) uint8 RGB and label (H,W) uint8 in data set ids; raises DataError or OSError."""

    def read_label(self, image_id: str) -> UInt8Array:
        """Label (H,W) uint8 in data set ids."""


@dataclass(frozen=True)
class Source:
    """One data set of the table `DATASETS`.

    open: gives the 'train' or 'val' split of the data set that its section of the config describes; it raises
        FileNotFoundError or ValueError naming what is missing. With a list as third argument, single images that lack
        a mask, the other way round, or have an impossible name are added there and left out instead.
    how_to_get: what to do to have its files, as the end of a sentence; '' where there are none to get.
    options: its section of the config.
    classes: names by data set id, background first; None where the files themselves name them.
    class_orders: published learning orders by name, as data set ids, 0 first.
    domains: what a domain-incremental task learns; None where there are none.
    """

    open: Callable[[Any, str, list[str] | None], SegmentationDataset]
    how_to_get: str = ""
    options: type[DataConfig] = DataConfig
    classes: tuple[str, ...] | None = None
    class_orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    domains: Domains | None = None

    @property
    def lies_in_files(self) -> bool:
        """Whether it is read from files below data.root."""
        return issubclass(self.options, FilesConfig)


def file_source(
    open_split: Callable[[Path, str, list[str] | None], FileDataset],
    how_to_get: str,
    classes: tuple[str, ...] | None,
    class_orders: Mapping[str, tuple[int, ...]] | None = None,
    domains: Domains | None = None,
    options: type[FilesConfig] = FilesConfig,
) -> Source:
    """The source of a data set whose splits `open_split` finds below a root, of which the config may take a part."""

    def open_configured(section: FilesConfig, split: str, problems: list[str] | None = None) -> FileDataset:
        dataset = replace(open_split(section.root, split, problems), long_side=section.long_side)
        if section.saliency is not None and split == "train":
            dataset = with_saliency(dataset, section.saliency)
        field_name = f"{split}_ids"
        id_list: Path | None = getattr(section, field_name)
        return dataset if id_list is None else keep_listed(dataset, id_list, f"data.{field_name}", problems)

    return Source(open_configured, how_to_get, options, classes, class_orders or {}, domains)


def with_saliency(dataset: FileDataset, folder: Path) -> FileDataset:
    """Return a split with the saliency masks of a folder; raises FileNotFoundError where an image has none."""
    expected = "data.saliency: expected a mask ID.png for each training image"
    masks = list_files(folder, {".png"}, expected)
    missing = [image_id for image_id in dataset.ids if image_id not in masks]
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]}.png: this mask is missing ({len(missing)} of {len(dataset.ids)} images have none). "
            f"{expected}"
        )
    return replace(dataset, saliency=folder)
