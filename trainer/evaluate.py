"""Evaluation of a step: the confusion matrix over all validation images."""

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from datasets.incremental import ValidationDataset
from datasets.tasks import IGNORE_INDEX
from datasets.unreadable import Unreadable
from models import SegmentationModel
from trainer.predict import group_by_shape, predict
from utils.config import Config
from utils.distributed import Worker


def evaluate(
    model: SegmentationModel,
    dataset: ValidationDataset,
    num_classes: int,
    config: Config,
    worker: Worker,
    unreadable: Unreadable | None = None,
) -> npt.NDArray[np.int64]:
    """Return the confusion matrix (K,K), rows ground truth, over the images of all ranks.

    dataset: this rank's share; no image belongs to two ranks. Of every `evaluate.batch_size` images, those of one
    shape share a forward pass. unreadable: takes the images that cannot be read, of all ranks; None ends with an error
    at any. Raises DataError.
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
    samples = unreadable.watch((image, label, [problem]) for image, label, problem in loader)
    while batch := list(itertools.islice(samples, config.evaluate.batch_size)):
        images, labels = zip(*batch, strict=True)
        for indices in group_by_shape(images):
            group = torch.stack([images[i].to(worker.device, non_blocking=True) for i in indices])
            predictions = predict(model, group, [labels[i].shape for i in indices], config)
            for i, prediction in zip(indices, predictions, strict=True):
                label = labels[i].to(worker.device, non_blocking=True).long()
                confusion.update(prediction[None], label[None])
    unreadable.agree(worker)
    matrix: npt.NDArray[np.int64] = confusion.compute().cpu().numpy().astype(np.int64)
    return matrix
