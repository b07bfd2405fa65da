"""PASCAL VOC 2012 with the augmented training masks: where its files lie, its class names and colours."""

from __future__ import annotations

from pathlib import Path

from datasets.file_dataset import FileDataset, check_split, list_files, make_palette, pair_samples, read_lines

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
PALETTE = make_palette(len(CLASSES))

EXPECTED = (
    "Expected below the data root: VOCdevkit/VOC2012/JPEGImages/ID.jpg, .../SegmentationClassAug/ID.png, "
    ".../ImageSets/Segmentation/val.txt and train_aug.txt (there or in .../list/); run `bash download_voc.sh`"
)


def open_split(root: Path, split: str, problems: list[str] | None = None) -> FileDataset:
    """One split of VOC below `root`/VOCdevkit/VOC2012.

    'val' is val.txt. 'train' is train_aug.txt or, where there is none, every mask of SegmentationClassAug that
    is not in val.txt.

    Raises (layout errors of single files are only added to `problems`, where given):
        ValueError: unknown split, or a list that is not UTF-8.
        FileNotFoundError: a folder, a list, an image or a mask is missing, or the split is empty.
    """
    check_split(split)
    voc = root / "VOCdevkit" / "VOC2012"
    images = list_files(voc / "JPEGImages", {".jpg"}, EXPECTED, problems)
    masks = list_files(voc / "SegmentationClassAug", {".png"}, EXPECTED, problems)
    samples = pair_samples(
        _list_ids(voc, split, list(masks)),
        images,
        masks,
        image_pattern=voc / "JPEGImages" / "ID.jpg",
        mask_pattern=voc / "SegmentationClassAug" / "ID.png",
        expected=EXPECTED,
        problems=problems,
    )
    return FileDataset("voc", split, CLASSES, PALETTE, samples)


def _list_ids(voc: Path, split: str, mask_ids: list[str]) -> list[str]:
    val_list = voc / "ImageSets" / "Segmentation" / "val.txt"
    if split == "val":
        return _read_list(val_list)
    for folder in (voc / "ImageSets" / "Segmentation", voc / "list"):
        if (folder / "train_aug.txt").is_file():
            return _read_list(folder / "train_aug.txt")
    val_ids = set(_read_list(val_list))
    return [image_id for image_id in mask_ids if image_id not in val_ids]


def _read_list(path: Path) -> list[str]:
    """Ids of a list whose lines are bare ids or '/JPEGImages/ID.jpg /SegmentationClassAug/ID.png' pairs."""
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such list. {EXPECTED}") from None
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not ids:
        raise FileNotFoundError(f"{path}: the list is empty. {EXPECTED}")
    return ids
