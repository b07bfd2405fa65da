"""Evaluation of a step: the confusion matrix over all validation images, and pictures to look at."""

import contextlib

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from datasets.files import Colour, UInt8Array
from datasets.incremental import ValidationDataset
from datasets.tasks import IGNORE_INDEX
from models.output import upsample
from utils.config import Config
from utils.distributed import Worker

_IGNORED_COLOUR = (224, 224, 192)  # the cream in which VOC draws its void


def autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision as the config asks for it."""
    dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, size: torch.Size, amp: str) -> Tensor:
    """Return the most likely class (B,H,W) int64 of every pixel, at `size`; images: (B,3,h,w) 0..255."""
    with autocast(amp, images.device):
        logits = model(images).logits
    if logits.shape[2:] != size:
        logits = upsample(logits, size)
    return logits.max(
        dim=1
    ).indices  # the first of equals, as argmax says, in a fraction of its time on a CPU


def evaluate(
    model: nn.Module, dataset: ValidationDataset, num_classes: int, config: Config, worker: Worker
) -> npt.NDArray[np.int64]:
    """Return the confusion matrix (K,K), rows ground truth, over the images of all ranks.

    dataset: this rank's share; no image belongs to two ranks.
    """
    model.eval()
    # Whole images differ in size: they go one by one.
    batch_size = config.evaluate.batch_size if config.evaluate.mode == "center_crop" else 1
    loader = DataLoader(
        dataset, batch_size, num_workers=config.data.num_workers, pin_memory=worker.device.type == "cuda"
    )
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
    confusion = confusion.to(worker.device)
    for images, labels in loader:
        images = images.to(worker.device, non_blocking=True)
        labels = labels.to(worker.device, non_blocking=True).long()
        confusion.update(predict(model, images, labels.shape[1:], config.train.amp), labels)
    matrix: npt.NDArray[np.int64] = confusion.compute().cpu().numpy().astype(np.int64)
    return matrix


def draw_panel(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    colours: list[Colour],
    config: Config,
    device: torch.device,
) -> UInt8Array:
    """Return image, label and prediction side by side, (H,3W,3), in the data set's palette.

    colours: by contiguous class id; label: (H,W) uint8.
    """
    prediction = predict(model, image[None].to(device), label.shape, config.train.amp)[0].cpu()
    table = np.full((256, 3), _IGNORED_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    shown = F.interpolate(image[None].float(), size=label.shape, mode="bilinear", align_corners=False)[0]
    pixels = shown.round().byte().permute(1, 2, 0).numpy()
    return np.concatenate([pixels, table[label.numpy()], table[prediction.numpy()]], axis=1)
