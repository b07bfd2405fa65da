"""What predict is given: images and videos of files, folders and globs, and how they are read."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode

from datasets.file_dataset import describe_aspect, read_image
from datasets.folder import IMAGE_SUFFIXES
from datasets.listing import is_hidden
from datasets.transforms import resize_short_side
from datasets.unreadable import explain
from tools.predicting.videos import VIDEO_SUFFIXES
from utils.arguments import to_path
from utils.console import progress_bar
from utils.errors import DataError
from utils.images import MAX_PIXELS, UInt8Array
from utils.loading import ReadAhead

TOO_LARGE = "too large for the memory of this machine; cut it into tiles"
MAX_NAMED = 5
"""Names of files that are told to be left out."""
Range = tuple[int, int] | None
"""Smallest and largest short side that the model sees; None for images' own."""


def find_images(inputs: Sequence[str], output: Path, left_out: list[Path] | None = None) -> dict[Path, Path]:
    """Return images and videos of files, folders and globs, by the relative path, without suffix, of their results.

    What lies below `output` is no input. left_out: takes the files in folders and globs that are neither. Raises
    FileNotFoundError or ValueError naming an input without images, or two images with one name.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        images = list(_images_of(given, output, [] if left_out is None else left_out))
        if not images:
            raise FileNotFoundError(
                f"{given}: no image; give a file, a glob, or a folder that holds {', '.join(IMAGE_SUFFIXES)} "
                f"or videos ({', '.join(VIDEO_SUFFIXES)}), outside --output"
            )
        for name, image in images:
            if os.path.realpath(found.setdefault(name, image)) != os.path.realpath(image):
                raise ValueError(
                    f"{image}: its results would replace those of {found[name]}, both being named {name}; "
                    "rename one, or predict them into two folders"
                )
    return found


def _images_of(given: str, output: Path, left_out: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield name and path of an input's files: one as it is, of folders and globs what has a known suffix.

    Others are added to `left_out`.
    """
    path = to_path(given)
    if path.is_dir():
        root, files = path, _search(path)
    elif os.path.lexists(path):  # a link to nothing is told as an image that cannot be read
        root, files = path.parent, [path]
    else:
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - absolute ones
        files = [file for match in matches for file in (_search(match) if match.is_dir() else [match])]
    for file in files:
        # realpath, as Path.resolve ends with an error where links lead in a circle.
        if Path(os.path.realpath(output)) in Path(os.path.realpath(file)).parents:
            continue
        if file == path or file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            yield file.relative_to(root).with_suffix(""), file
        elif file not in left_out:
            left_out.append(file)


def _search(folder: Path) -> list[Path]:
    """Files in a folder to its depths, without hidden ones; a folder that is named like an image is one of them."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if (path.suffix.lower() in IMAGE_SUFFIXES or not path.is_dir()) and not is_hidden(path, folder)
    ]


def describe_left_out(files: Sequence[Path]) -> str:
    """Return what is said of files that are neither images nor videos."""
    named = ", ".join(ascii(path.name) for path in files[:MAX_NAMED])
    more = f" and {len(files) - MAX_NAMED} more" if len(files) > MAX_NAMED else ""
    return f"left out, as they are no images by their suffix: {named}{more}"


class Images(Dataset[tuple[Tensor, Tensor, str]]):
    """Images as the model sees them (3,h,w) and as they are (H,W,3), uint8; and why one cannot be read, else ''.

    short_sides: images whose short side is outside this range are scaled to its nearer end; None scales none.
    """

    def __init__(self, paths: Sequence[Path], short_sides: Range, max_pixels: int = MAX_PIXELS) -> None:
        self.paths = paths
        self.short_sides = short_sides
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        path = self.paths[index]
        try:
            str(path).encode()
            pixels = read_image(path, self.max_pixels)
            problem = describe_aspect(path, pixels.shape[1::-1])
        except UnicodeEncodeError:
            problem = f"{str(path)!a}: the name is not UTF-8; rename the file"
        except MemoryError:
            problem = f"{path}: {TOO_LARGE}"
        except (DataError, OSError) as error:
            problem = explain(error)
        if problem is not None:
            return torch.empty(0), torch.empty(0), problem
        shown = torch.from_numpy(np.ascontiguousarray(pixels))
        return see(shown, self.short_sides), shown, ""


def see(pixels: Tensor, short_sides: Range) -> Tensor:
    """Return an image (H,W,3) as the model sees it, (3,h,w), its short side within a range."""
    image = pixels.permute(2, 0, 1)
    own = min(image.shape[1:])
    smallest, largest = short_sides or (own, own)
    if not smallest <= own <= largest:
        image = resize_short_side(image, min(max(own, smallest), largest), InterpolationMode.BILINEAR)
    return image.contiguous()


def read_images(
    dataset: Images, num_workers: int, problems: list[str]
) -> Iterator[tuple[Tensor, torch.Size, tuple[int, UInt8Array]]]:
    """Yield what the model sees of every image, the image's size, and its number and pixels (H,W,3).

    Why one cannot be read is added to `problems`.
    """
    if not len(dataset):
        return
    # A large image ahead takes as much memory as the one at work.
    loader = ReadAhead(
        dataset, batch_size=None, num_workers=num_workers, prefetch_factor=1 if num_workers else None
    )
    bar = progress_bar("predicting", len(dataset), "image", over=loader)
    for index, (image, pixels, problem) in enumerate(bar):
        if problem:
            problems.append(problem)
        else:
            yield image, pixels.shape[:2], (index, pixels.numpy())
