"""The sections of a config that are the trainer's own: training, memory, evaluation, ranks, logging."""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from utils.config.section import Section

MAX_COUNT = 10**6
"""Of images, epochs and the like: beyond it, memory or years run out, not a run."""
MAX_SIDE = 2**14
"""Of a crop, in pixels."""


class TrainConfig(Section):
    batch_size: int = Field(ge=1, le=MAX_COUNT)
    """Images an iteration, over all ranks and accumulated micro-batches."""
    accumulate: int = Field(1, ge=1, le=MAX_COUNT)
    """Micro-batches that a rank's share of the batch is cut into, to save memory; the gradient is the same where
    BatchNorm is frozen, else its statistics are a micro-batch's."""
    num_epochs: int = Field(ge=1, le=MAX_COUNT)
    """Passes over a step's images."""
    num_epochs_incremental: int | None = Field(None, ge=1, le=MAX_COUNT)
    """The same for incremental steps, where it differs."""
    min_iterations: int = Field(0, ge=0, le=MAX_COUNT)
    """Least number of iterations of a step: one of few images makes more passes over them."""
    crop_size: int = Field(ge=1, le=MAX_SIDE)
    """Side of the training crop and of the evaluation, in pixels."""
    min_scale: float = Field(0.5, gt=0)
    """Smallest random scale of a training image, 1 being its short side at the crop's."""
    max_scale: float = Field(2.0, gt=0)
    """Largest random scale of a training image."""
    pad_image: Literal["mean", "black"] = "mean"
    """Colour of what lies outside an image smaller than the crop: the mean that images are normalised with, or black.
    The image lies anywhere in the crop."""
    pad_label: Literal["ignore", "background"] = "ignore"
    """Label of what lies outside an image smaller than the crop."""
    void_label: Literal["ignore", "background"] = "ignore"
    """Label of what the data set leaves void (255); the released code of MiB, LwF and ILT trains it as background."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimiser."""
    lr_base: float = Field(gt=0)
    """Learning rate of the backbone in the base step."""
    lr_incremental: float = Field(gt=0)
    """Learning rate of the backbone in incremental steps (absolute)."""
    lr_head_factor: float = Field(10.0, gt=0)
    """Factor on both for everything behind the backbone."""
    lr_classifier_incremental: float | None = Field(None, gt=0)
    """Learning rate of the classifier in incremental steps (absolute), where it is not that of everything else behind
    the backbone: class tokens can learn fast while the features they share move slowly."""
    lr_background_factor: float = Field(1.0, ge=0)
    """Factor on the classifier's learning rate in incremental steps for a head of the background's own
    (`model.classifier`); 0 freezes it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD (beta 1 of AdamW)."""
    nesterov: bool = False
    """Nesterov's momentum (SGD)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of every parameter."""
    weight_decay_on: Literal["all", "new_classes"] = "all"
    """Which parameters it acts on in incremental steps: all, or the classifier of the new classes only (DKD)."""
    schedule: Literal["poly", "constant", "cosine"] = "poly"
    """Learning rate over the iterations of a step; poly has power 0.9."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of a step's iterations over which the learning rate rises linearly from a thousandth of `schedule` to the
    whole of it."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; null does not clip."""
    freeze_bn: bool = True
    """Keep BatchNorm (statistics and affine) as the base step left it in incremental steps."""
    freeze_dropout: bool = False
    """Leave dropout out of incremental steps."""
    freeze_extractor: bool = False
    """Train the classifier of the new classes only in incremental steps (SSUL)."""
    freeze_old_classes: bool = False
    """Keep the classifier of the old classes, background included, as it starts in incremental steps."""
    fuse_old_weights: bool = False
    """End incremental steps with a weighted mean of the weights before and after, the new ones' share being √(new
    classes / all classes) (EWF)."""
    sync_bn: bool | Literal["auto"] = True
    """BatchNorm statistics over all ranks (GPUs only). `auto`: only where a rank has fewer than 8 images at once; every
    such layer makes the ranks wait for one another, and the host for its GPU."""
    amp: Literal["off", "bf16", "fp16", "auto"] = "off"
    """Mixed precision; fp16 scales the loss and needs a GPU. `auto` is bf16 where the processor computes in it and does
    not emulate it, else off; a run goes on with what it began with."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    compile: bool = False
    """torch.compile both models and the objective, anew in every step."""
    deterministic: bool = False
    """Take only kernels that add in a fixed order, some of them slower: on a GPU, too, two runs of one command then
    agree bit for bit. On a CPU they do so anyway."""

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_not_false(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false


class MemoryConfig(Section):
    size: int = Field(0, ge=0)
    """Images of earlier steps that every incremental step trains on too; 0 is none."""
    strategy: Literal["random", "class_balanced"] = "random"
    """Which ones: any, or each for the class that the memory shows least."""
    labels: Literal["step", "seen"] = "seen"
    """What is labelled in them: the step's classes, as in its own images, or all classes seen so far."""


class EvaluateConfig(Section):
    mode: Literal["center_crop", "whole", "sliding"] = "center_crop"
    """What the model sees of an image: its centre, with the short side at the crop (the literature), all of it at once,
    or all of it in windows of the crop's size; the last two count at the label's own size."""
    short_side: Literal["crop", "own"] | Annotated[int, Field(ge=1, le=MAX_SIDE)] = "crop"
    """Pixels to which an image's short side is scaled first: those of the crop, its own (not scaled), or a number;
    modes `whole` and `sliding` only."""
    stride: int | None = Field(None, ge=1)
    """Pixels from one window to the next (`sliding` only), no more than the crop; null is two thirds of the crop, as
    PSPNet and its successors have it. Probabilities are averaged where windows overlap."""
    flip: bool = False
    """Test-time augmentation: average the probabilities with those of the mirrored image."""
    scales: list[Annotated[float, Field(gt=0, le=100)]] = Field([1.0], min_length=1)
    """Test-time augmentation: average the probabilities over the image at these scales, 1 being as `mode` has it."""
    future: Literal["ignore", "background"] = "ignore"
    """What pixels of classes not yet learned count as."""
    void_background: bool | None = None
    """Ignore pixels that the data set labels 0 (MiB on ADE20K), or let them count as background (PLOP, SSUL, DKD). null
    is as the data set has it: ADE20K ignores them. The lines `groups` of results.json do not depend on it."""
    labelled: Literal["all"] | list[str] | None = None
    """Classes that the validation masks label: `all`, or names; null takes those that a validation mask shows in data
    whose files name the classes (`folder`), all elsewhere. Others have no IoU, and background that the model takes for
    them is left out."""
    batch_size: int = Field(8, ge=1, le=MAX_COUNT)
    """Images (`sliding`: windows) a forward pass, a rank; images of different sizes do not share one. The results
    depend on it by rounding at most."""

    def window_stride(self, crop_size: int) -> int:
        """Return the pixels from one window of `crop_size` to the next."""
        return self.stride or math.ceil(2 * crop_size / 3)


class DistributedConfig(Section):
    timeout: float = Field(1800.0, gt=0)
    """Seconds that ranks wait for one that has died or hangs before the run ends."""


class LoggingConfig(Section):
    every: int = Field(10, ge=1)
    """Iterations between two entries of metrics.jsonl and TensorBoard."""
    num_panels: int = Field(4, ge=0, le=1000)
    """Validation images shown after every step, always the same, in report.html and TensorBoard."""
    report: bool = True
    """Draw plots/ and report.html, a minute apart at least and after the last step; `tools.report` draws them later."""
    wandb: str | None = Field(None, min_length=1)
    """Project in Weights & Biases that curves and panels go to as well (pip install wandb); null writes none."""
