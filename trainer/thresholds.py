"""Before a step: how sure the old model has to be of each class for a pseudo-label (PLOP)."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.incremental import StepDataset
from losses.entropy_pseudo_label import NUM_BINS, entropy_histogram, median_thresholds
from models import SegmentationModel
from trainer.config import Config
from trainer.inference import autocast
from utils.distributed import Worker
from utils.signals import leave_signals_to_parent


@torch.no_grad()
def measure_thresholds(
    old_model: SegmentationModel, dataset: StepDataset, config: Config, worker: Worker
) -> Tensor:
    """Return (K_old,) thresholds on the entropy: its medians over the step's images as its first epoch shows them.

    Every rank looks at its share of the images. One that cannot be read is replaced, as in training, which tells of it.
    """
    keys = [(0, index) for index in range(worker.rank, len(dataset), worker.world_size)]
    size = max(1, config.train.batch_size // (worker.world_size * config.train.accumulate))
    loader = DataLoader(
        dataset,
        batch_sampler=[keys[start : start + size] for start in range(0, len(keys), size)],
        num_workers=config.data.num_workers,
        worker_init_fn=leave_signals_to_parent,
        # A loader draws a seed for its workers; the training that follows must not notice.
        generator=torch.Generator(),
    )
    histogram = torch.zeros(sum(old_model.num_classes), NUM_BINS, dtype=torch.int64, device=worker.device)
    for images, labels, _ in loader:
        with autocast(config.train.amp, worker.device):
            old = old_model(images.to(worker.device))
        histogram += entropy_histogram(labels.long().to(worker.device), old.logits)
    return median_thresholds(worker.sum(histogram), config.loss.pseudo_label.threshold)
