"""Validation images to look at, the same after every step: panels/ of the run, shown by report.html and TensorBoard."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.source import SegmentationDataset
from datasets.tasks import Step, Task
from models import SegmentationModel
from trainer.inference import predict
from trainer.plan import Plan
from utils.distributed import Worker
from utils.errors import DataError
from utils.images import Colour, UInt8Array
from utils.labels import IGNORE_INDEX
from utils.metrics import FloatArray
from utils.report.pictures import IGNORED_COLOUR, write_image, write_mask

MAX_SIDE = 320
"""Pixels of a panel's longer side: enough to look at, and a run's are a few MB at most."""
NUM_CANDIDATES = 64
MIN_SHARE = 0.01
"""Of an image's pixels: a class that covers less is hardly seen."""
GRID = 4
"""Cells a side in which the appearance of two images is compared."""


def draw_panels(
    plan: Plan, step: Step, model: SegmentationModel, worker: Worker
) -> Iterator[tuple[str, UInt8Array]]:
    """Write `logging.num_panels` images, their labels and the model's predictions into the run's folder.

    Yields the image id, and image, ground truth and prediction side by side, (H,3W,3), in the plan's palette.
    The ground truth is that of the last step, in which every class of the task has its label; beside it lies what this
    step's scores hold the prediction against. An image that cannot be read is left out. Raises SaveError.
    """
    config, task, colours = plan.config, plan.task, plan.palette
    image_ids = choose_images(plan.val, task, config.logging.num_panels)
    datasets = [plan.evaluation.dataset(image_ids, s) for s in (task.steps[-1], step)]
    for index, image_id in enumerate(image_ids):
        (image, truth, problem), (_, label, _) = (dataset[index] for dataset in datasets)
        if problem:
            continue
        prediction = predict(model, image[None].to(worker.device), [truth.shape], config)[0].cpu().byte()
        scored = leave_out(label, prediction, plan.evaluation.unlabelled)
        pixels, *masks = shrink(image, truth, prediction, scored)
        folder = config.run_dir / "panels" / image_id
        write_image(folder / "image.jpg", pixels)
        names = ("ground_truth", f"step_{step.index}", f"scored_{step.index}")
        for name, mask in zip(names, masks, strict=True):
            write_mask(folder / f"{name}.png", mask, colours)
        yield image_id, join_panel(pixels, masks[0], masks[1], colours)


def leave_out(label: Tensor, prediction: Tensor, unlabelled: Collection[int]) -> Tensor:
    """Return a label (H,W) that is 255 also where `utils.metrics.leave_out_unlabelled` leaves out the prediction."""
    ids = torch.tensor(sorted(unlabelled), dtype=label.dtype)
    left_out = torch.isin(label, ids) | ((label == 0) & torch.isin(prediction, ids))
    return label.masked_fill(left_out, IGNORE_INDEX)


class Candidate(NamedTuple):
    """An image that may be shown: the classes that it shows, and the mean colours (N,) of a grid of cells, 0..1."""

    classes: frozenset[int]
    colours: FloatArray

    def distance(self, other: "Candidate") -> float:
        """How different two images are, 0..2: by the share of their classes that they do not share, and by colours."""
        union = self.classes | other.classes
        shared = len(self.classes & other.classes) / len(union) if union else 1.0
        return 1 - shared + float(np.sqrt(np.mean((self.colours - other.colours) ** 2)))


def choose_images(dataset: SegmentationDataset, task: Task, count: int) -> list[str]:
    """Return the ids of images that together show classes of as many steps as possible, then as many classes, and that
    differ from each other in classes and appearance.

    Of NUM_CANDIDATES images at most, spread over the split, the same whatever the ranks and whenever it is asked; in
    the split's order.
    """
    num_candidates = min(NUM_CANDIDATES, len(dataset.ids)) if count else 0
    places = np.linspace(0, len(dataset.ids) - 1, num_candidates).round().astype(int)
    left = {}
    for image_id in (dataset.ids[place] for place in places):
        try:
            left[image_id] = describe_candidate(*dataset.read(image_id), task)
        except (DataError, OSError):  # the evaluation reports it
            continue
    step_of = {c: step.index for step in task.steps for c in step.new_classes}
    chosen: dict[str, Candidate] = {}
    while left and len(chosen) < count:
        covered = {c for candidate in chosen.values() for c in candidate.classes}
        covered_steps = {step_of[c] for c in covered}

        def gain(image_id: str) -> tuple[int, int, float]:
            candidate = left[image_id]
            new = candidate.classes - covered  # noqa: B023 - asked in this round only
            new_steps = {step_of[c] for c in new} - covered_steps  # noqa: B023
            nearest = min((candidate.distance(other) for other in chosen.values()), default=0.0)
            return len(new_steps), len(new), nearest

        best = max(left, key=gain)
        chosen[best] = left.pop(best)
    return sorted(chosen, key=dataset.ids.index)


def describe_candidate(image: UInt8Array, label: UInt8Array, task: Task) -> Candidate:
    """Return what `choose_images` asks of an image (H,W,3) and its label (H,W) in data set ids."""
    ids = task.remap_table()[label]
    pixels = np.bincount(ids.ravel(), minlength=256)
    shown = {int(c) for c in np.flatnonzero(pixels >= MIN_SHARE * ids.size)} - {0, IGNORE_INDEX}
    cells = Image.fromarray(image).resize((GRID, GRID), Image.Resampling.BOX)
    return Candidate(frozenset(shown), np.asarray(cells, dtype=np.float64).ravel() / 255)


def shrink(image: Tensor, *masks: Tensor) -> tuple[UInt8Array, ...]:
    """Return image (3,h,w) as (H,W,3), and masks (h',w') as (H,W), uint8: of h', w', or with MAX_SIDE."""
    height, width = masks[0].shape
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    pixels = F.interpolate(
        image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=scale < 1
    )[0]
    smaller = (
        np.asarray(Image.fromarray(mask.numpy()).resize(size[::-1], Image.Resampling.NEAREST))
        for mask in masks
    )
    return pixels.round().byte().permute(1, 2, 0).contiguous().numpy(), *smaller


def join_panel(
    image: UInt8Array, label: UInt8Array, prediction: UInt8Array, colours: Sequence[Colour]
) -> UInt8Array:
    """Return image (H,W,3), label and prediction (H,W) side by side, (H,3W,3); `colours` by contiguous class id."""
    table = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    return np.concatenate([image, table[label], table[prediction]], axis=1)
