"""Evaluation of a step: the confusion matrix over all validation images."""

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from datasets.incremental import ValidationDataset
from datasets.tasks import IGNORE_INDEX
from datasets.unreadable import Unreadable
from models import SegmentationModel
from trainer.config import Config
from trainer.inference import predict_all
from utils.console import progress_bar
from utils.distributed import Worker


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
