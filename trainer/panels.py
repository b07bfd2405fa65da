"""Validation images to look at, the same after every step: panels/ of the run, shown by report.html and TensorBoard."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.source import SegmentationDataset
from datasets.tasks import IGNORE_INDEX, Step, Task
from models import SegmentationModel
from trainer.inference import predict
from trainer.plan import Plan
from utils.distributed import Worker
from utils.errors import DataError
from utils.images import Colour, UInt8Array
from utils.report.pictures import IGNORED_COLOUR, write_image, write_mask

MAX_SIDE = 320
"""Pixels of a panel's longer side: enough to look at, and a run's are a few MB at most."""
NUM_CANDIDATES = 64
MIN_SHARE = 0.01
"""Of an image's pixels: a class that covers less is hardly seen."""


def draw_panels(
    plan: Plan, step: Step, model: SegmentationModel, worker: Worker
) -> Iterator[tuple[str, UInt8Array]]:
    """Write `logging.num_panels` images, their ground truth and the model's predictions into the run's folder.

    Yields the image id, and image, ground truth and prediction side by side, (H,3W,3), in the plan's palette.
    The ground truth is that of the last step, in which every class of the task has its label. An image that cannot be
    read is left out. Raises SaveError.
    """
    config, task, colours = plan.config, plan.task, plan.palette
    image_ids = choose_images(plan.val, task, config.logging.num_panels)
    dataset = plan.evaluation.dataset(image_ids, task.steps[-1])
    for index, image_id in enumerate(image_ids):
        image, label, problem = dataset[index]
        if problem:
            continue
        prediction = predict(model, image[None].to(worker.device), [label.shape], config)[0].cpu().byte()
        parts = shrink(image, label, prediction)
        folder = config.run_dir / "panels" / image_id
        write_image(folder / "image.jpg", parts[0])
        write_mask(folder / "ground_truth.png", parts[1], colours)
        write_mask(folder / f"step_{step.index}.png", parts[2], colours)
        yield image_id, join_panel(*parts, colours)


def choose_images(dataset: SegmentationDataset, task: Task, count: int) -> list[str]:
    """Return the ids of images that together show classes of as many steps as possible, then as many classes.

    Of NUM_CANDIDATES images at most, spread over the split, the same whatever the ranks and whenever it is asked; in
    the split's order.
    """
    num_candidates = min(NUM_CANDIDATES, len(dataset.ids)) if count else 0
    places = np.linspace(0, len(dataset.ids) - 1, num_candidates).round().astype(int)
    candidates = [dataset.ids[place] for place in places]
    table, step_of = task.remap_table(), np.zeros(256, dtype=np.int64)
    for step in task.steps:
        step_of[list(step.new_classes)] = step.index
    shown = {}
    for image_id in candidates:
        try:
            ids = table[dataset.read_label(image_id)]
        except (DataError, OSError):  # the evaluation reports it
            continue
        pixels = np.bincount(ids.ravel(), minlength=256)
        shown[image_id] = {int(c) for c in np.flatnonzero(pixels >= MIN_SHARE * ids.size)} - {0, IGNORE_INDEX}
    chosen: list[str] = []
    covered: set[int] = set()
    while shown and len(chosen) < count:
        covered_steps = {step_of[c] for c in covered}
        gains = {
            image_id: (len({step_of[c] for c in classes} - covered_steps), len(classes - covered))
            for image_id, classes in shown.items()
        }
        best = max(gains, key=lambda image_id: gains[image_id])
        if covered and gains[best] == (0, 0):
            covered = set()  # everything has been shown once: again from the start
            continue
        covered |= shown.pop(best)
        chosen.append(best)
    return sorted(chosen, key=dataset.ids.index)


def shrink(image: Tensor, label: Tensor, prediction: Tensor) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    """Return image (3,h,w) as (H,W,3), label and prediction (h',w') as (H,W), uint8: of h', w', or with MAX_SIDE."""
    height, width = label.shape
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    pixels = F.interpolate(
        image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=scale < 1
    )[0]
    masks = [
        np.asarray(Image.fromarray(mask.numpy()).resize(size[::-1], Image.Resampling.NEAREST))
        for mask in (label, prediction)
    ]
    return pixels.round().byte().permute(1, 2, 0).contiguous().numpy(), masks[0], masks[1]


def join_panel(
    image: UInt8Array, label: UInt8Array, prediction: UInt8Array, colours: Sequence[Colour]
) -> UInt8Array:
    """Return image (H,W,3), label and prediction (H,W) side by side, (H,3W,3); `colours` by contiguous class id."""
    table = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    return np.concatenate([image, table[label], table[prediction]], axis=1)
