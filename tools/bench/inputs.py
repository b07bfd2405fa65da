"""What the benchmark measures on: random outputs, labels, images and files, always the same."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.file_dataset import FileDataset
from methods import Output
from models import SegOutput
from utils.images import UInt8Array, make_palette
from utils.labels import IGNORE_INDEX
from utils.upsampling import Upsampled

IDENTITY = np.arange(256, dtype=np.uint8)
"""A table of class ids that changes none."""


def random_output(output: SegOutput, size: int, generator: torch.Generator) -> tuple[Output, list[Tensor]]:
    """Return an output of random values and the leaves in it that a gradient reaches, as training has them.

    Scores are (B,K,h,w), features and class tokens shaped as in `output`; the backbone's four stages are the features.
    `pixel_logits` (B,K,size,size) are not computed yet.
    """

    def leaf(like: Tensor) -> Tensor:
        values = torch.randn(like.shape, generator=generator, device=like.device)
        return (3 * values).requires_grad_(like.requires_grad)

    grid_logits, features, class_tokens = map(
        leaf, (output.grid_logits, output.features, output.class_tokens)
    )
    ears, head_outputs = tuple(map(leaf, output.ears)), tuple(map(leaf, output.head_outputs))
    made = SegOutput(
        pixel_logits=Upsampled(grid_logits, (size, size), (size, size)),
        grid_logits=grid_logits,
        features=features,
        class_tokens=class_tokens,
        class_embeddings=None,
        stages=(features,) * 4,
        backbone=features,
        ears=ears,
        head_outputs=head_outputs,
    )
    return cast(Output, made), [grid_logits, features, class_tokens, *ears, *head_outputs]


def random_labels(shape: tuple[int, ...], num_old: int, num_new: int, device: torch.device) -> Tensor:
    """Int64 labels of a step: background, a fifth of new classes, a little 255."""
    generator = torch.Generator(device).manual_seed(1)
    dice = torch.rand(shape, generator=generator, device=device)
    new = torch.randint(num_old, num_old + num_new, shape, generator=generator, device=device)
    return torch.where(dice < 0.2, new, 0).masked_fill(dice > 0.95, IGNORE_INDEX)


class Stored:
    """A data set of one image in memory."""

    def __init__(self, image: UInt8Array, label: UInt8Array) -> None:
        self.sample = image, label

    def read(self, _: str) -> tuple[UInt8Array, UInt8Array]:
        return self.sample


def random_sample(seed: int, height: int = 375, width: int = 500) -> tuple[UInt8Array, UInt8Array]:
    """An image about as rough as a photograph, and a mask of a few objects on background."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells, contrast in ((4, 40), (16, 25), (64, 15), (256, 8)):
        noise = rng.normal(0, contrast, (cells, cells, 3)).clip(-127, 127) + 128
        coarse = Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        image += np.asarray(coarse) - 128.0
    y, x = np.mgrid[0:height, 0:width]
    label = np.zeros((height, width), np.uint8)
    for class_id in rng.integers(1, 21, size=3):
        (cy, cx), (ry, rx) = rng.random(2) * (height, width), rng.uniform(0.1, 0.35, 2) * (height, width)
        distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        label[distance < 1.1] = IGNORE_INDEX
        label[distance < 1] = class_id
    return (image + 128).clip(0, 255).astype(np.uint8), label


def write_samples(folder: Path, num_files: int, num_ids: int) -> FileDataset:
    """A data set of JPEGs and palette PNGs of 500x375; ids beyond `num_files` are links to earlier files."""
    folder.mkdir(parents=True, exist_ok=True)
    palette = make_palette(256)
    samples = {}
    for i in range(num_ids):
        image_path, mask_path = folder / f"{i}.jpg", folder / f"{i}.png"
        if i < num_files:
            image, label = random_sample(i)
            Image.fromarray(image).save(image_path, quality=90)
            mask = Image.fromarray(label)
            mask.putpalette(np.array(palette, np.uint8).tobytes())
            mask.save(mask_path)
        else:
            for path in (image_path, mask_path):
                path.hardlink_to(folder / f"{i % num_files}{path.suffix}")
        samples[str(i)] = image_path, mask_path
    return FileDataset("benchmark", "train", tuple(map(str, range(21))), palette[:21], samples)


def decode_mask(path: str) -> None:
    with Image.open(path) as mask:
        np.asarray(mask)
