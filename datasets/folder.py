"""A data set of one's own: images, masks and a list of classes in a folder."""

from __future__ import annotations

from pathlib import Path

from datasets.class_list import read_class_list
from datasets.config import FilesConfig
from datasets.file_dataset import FileDataset
from datasets.listing import check_split, describe_left_out, list_files, pair_samples
from datasets.source import file_source
from utils.images import make_palette

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")

HOW_TO_GET = "bring your images into its layout (`python -m tools.prepare_folder --help`)"
EXPECTED = (
    "Expected below the data root: images/{train,val}/ID.jpg (or " + ", ".join(IMAGE_SUFFIXES[1:]) + "), "
    "masks/{train,val}/ID.png (8-bit class ids, 0 = background, 255 = ignored) and classes.txt "
    f"(one name a line, line i is id i), or classes.yaml where masks are in colour; {HOW_TO_GET}"
)


class FolderConfig(FilesConfig):
    """A folder of one's own, and where old classes are scored."""

    val_root_old: Path | None = None
    """A second folder of this layout, whose validation masks label classes that those of `root` do not. Both count in
    the scores, each for the classes that its masks show."""


def open_split(root: Path, split: str, problems: list[str] | None = None) -> FileDataset:
    """One split of the data set in `root`.

    Raises (layout errors of single files are only added to `problems`, where given):
        ValueError: unknown split, a wrong list of classes, or two images with one id.
        FileNotFoundError: a folder, the list of classes, an image or a mask is missing, or the split is empty.
    """
    check_split(split)
    classes = read_class_list(root, EXPECTED)
    image_folder, mask_folder = root / "images" / split, root / "masks" / split
    images = list_files(image_folder, IMAGE_SUFFIXES, EXPECTED, problems)
    masks = list_files(mask_folder, {".png"}, EXPECTED, problems)
    samples = pair_samples(
        sorted(images.keys() | masks.keys()),
        images,
        masks,
        image_pattern=image_folder / "ID.jpg",
        mask_pattern=mask_folder / "ID.png",
        expected=EXPECTED,
        problems=problems,
    )
    palette = classes.colours or make_palette(len(classes.names))
    remarks = (
        *describe_left_out(image_folder, IMAGE_SUFFIXES, "images"),
        *describe_left_out(mask_folder, {".png"}, "masks"),
    )
    return FileDataset(
        "folder", split, classes.names, palette, samples, mask_coding=classes.coding, remarks=remarks
    )


SOURCE = file_source(open_split, HOW_TO_GET, None, options=FolderConfig)
