"""Evaluation of a step: the confusion matrix over all validation images, and pictures to look at."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from datasets.incremental import ValidationDataset
from datasets.masks import Colour, UInt8Array
from datasets.tasks import IGNORE_INDEX
from datasets.unreadable import Unreadable
from models import SegmentationModel
from trainer.predict import predict, predict_all
from utils.config import Config
from utils.console import progress_bar
from utils.distributed import Worker

_IGNORED_COLOUR = (224, 224, 192)  # the cream in which VOC draws its void


def evaluate(
    model: SegmentationModel,
    dataset: ValidationDataset,
    num_classes: int,
    config: Config,
    worker: Worker,
    unreadable: Unreadable | None = None,
    progress: str = "",
) -> npt.NDArray[np.int64]:
    """Return the confusion matrix (K,K), rows ground truth, over the images of all ranks.

    dataset: this rank's share; no image belongs to two ranks. Of every `evaluate.batch_size` images, those of one
    shape share a forward pass. unreadable: takes the images that cannot be read, of all ranks; None ends with an error
    at any. progress: what the main process's progress bar says; '' shows none. Raises DataError.
    """
    model.eval()
    unreadable = unreadable or Unreadable("raise", 0.0, len(dataset), "evaluation")
    # Workers hand over images one by one: those of a batch may differ in size, and so may their labels.
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=config.data.num_workers,
        pin_memory=worker.device.type == "cuda",
        # A loader draws a seed for its workers; a training that goes on afterwards must not notice.
        generator=torch.Generator(),
    )
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
    confusion = confusion.to(worker.device)
    shown = bool(progress) and worker.is_main
    read = progress_bar(progress, len(dataset), unit="image", over=loader, shown=shown)
    sound = unreadable.watch((image, label, [problem]) for image, label, problem in read)
    samples = ((image, label.shape, label) for image, label in sound)
    for label, prediction in predict_all(model, samples, config, worker.device):
        confusion.update(prediction[None], label.to(worker.device, non_blocking=True).long()[None])
    unreadable.agree(worker)
    matrix: npt.NDArray[np.int64] = confusion.compute().cpu().numpy().astype(np.int64)
    return matrix


def draw_panel(
    model: SegmentationModel,
    image: Tensor,
    label: Tensor,
    colours: list[Colour],
    config: Config,
    device: torch.device,
) -> UInt8Array:
    """Return image, label and prediction side by side, (H,3W,3), in the data set's palette.

    colours: by contiguous class id; label: (H,W) uint8.
    """
    prediction = predict(model, image[None].to(device), [label.shape], config)[0].cpu()
    table = np.full((256, 3), _IGNORED_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    shown = F.interpolate(image[None].float(), size=label.shape, mode="bilinear", align_corners=False)[0]
    pixels = shown.round().byte().permute(1, 2, 0).numpy()
    return np.concatenate([pixels, table[label.numpy()], table[prediction.numpy()]], axis=1)
