"""A data set of one's own: images, masks and a list of classes in a folder."""

from __future__ import annotations

from pathlib import Path

from datasets.files import FileDataset, check_split, list_files, make_palette, pair_samples, read_lines

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_CLASSES = 255  # ids 0..254; 255 is ignored

EXPECTED = (
    "Expected below the data root: images/{train,val}/ID.jpg (or " + ", ".join(IMAGE_SUFFIXES[1:]) + "), "
    "masks/{train,val}/ID.png (8-bit class ids, 0 = background, 255 = ignored) and classes.txt "
    "(one name a line, line i is id i)"
)


def open_split(root: Path, split: str, problems: list[str] | None = None) -> FileDataset:
    """One split of the data set in `root`.

    Raises (layout errors of single files are only added to `problems`, where given):
        ValueError: unknown split, a wrong classes.txt, or two images with one id.
        FileNotFoundError: a folder, classes.txt, an image or a mask is missing, or the split is empty.
    """
    check_split(split)
    classes = read_classes(root / "classes.txt")
    images = list_files(root / "images" / split, IMAGE_SUFFIXES, EXPECTED, problems)
    masks = list_files(root / "masks" / split, {".png"}, EXPECTED, problems)
    samples = pair_samples(
        sorted(images.keys() | masks.keys()),
        images,
        masks,
        image_pattern=root / "images" / split / "ID.jpg",
        mask_pattern=root / "masks" / split / "ID.png",
        expected=EXPECTED,
        problems=problems,
    )
    return FileDataset("folder", split, classes, make_palette(len(classes)), samples)


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names by data set id, background first.

    Line i, counted from 1, is id i; where the first line says 'background' it is counted from 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, no class, a blank line, a name twice, or too many classes.
    """
    try:
        names = [line.strip() for line in read_lines(path)]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file. {EXPECTED}") from None
    if names[:1] != ["background"]:
        names.insert(0, "background")
        first_line = 0
    else:
        first_line = 1
    line_of: dict[str, int] = {}
    for line, name in enumerate(names, start=first_line):
        if not name:
            raise ValueError(
                f"{path}: line {line} is blank; a line number is a class id, so remove the blank line"
            )
        if name in line_of:
            earlier = f"line {line_of[name]}" if line_of[name] else "id 0"
            raise ValueError(
                f"{path}: line {line} repeats the class {name!r} of {earlier}; give every class once"
            )
        line_of[name] = line
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(
            f"{path}: found {len(names) - 1} classes besides background; allowed are 1 to {MAX_CLASSES - 1}"
        )
    return tuple(names)
