"""The whole configuration of a run: one frozen, typed object, from YAML and `--set key.sub=value`.

The sections of data sets, models and methods stand beside their owners; a section's fields are those of the one that is
chosen by name.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, Field, StrictInt, ValidationError, field_validator

from datasets import DATASETS
from datasets.config import DataConfig
from datasets.domains import is_domain_task
from methods import METHODS, Method
from models import MODELS, ModelOptions
from trainer.rare import RareConfig
from trainer.shared_base import BaseStep
from utils.config.fields import differing_fields as compare
from utils.config.fields import mentions, merge, without
from utils.config.layers import merge_layers, read_layers, source_of
from utils.config.read import apply_overrides, describe_errors, name_in
from utils.config.section import Section, choice, choice_of
from utils.config.values import check_folder_name, check_interval

if TYPE_CHECKING:
    DataSection = DataConfig
    ModelSection = ModelOptions
    MethodSection = Method.Options
else:
    DataSection = choice({name: source.options for name, source in DATASETS.items()})
    ModelSection = choice({name: model.Options for name, model in MODELS.items()}, default="deeplabv3")
    MethodSection = choice({name: method.Options for name, method in METHODS.items()}, default="mbs")

MAY_DIFFER = (
    "log",
    "variant",
    "output_dir",
    "data.num_workers",
    "data.on_error",
    "data.max_skipped",
    "save_every",
    "distributed",
    "logging",
)
"""Fields (or sections) that cannot change a result: a run may be continued with other values. `data.on_error` is among
them, so that a run that ended at an unreadable file can go on."""

INCREMENTAL_ONLY = (
    "method",
    "init_from",
    "memory",
    "data.train_on",
    "model.background_residuals",
    "train.num_epochs_incremental",
    "train.lr_incremental",
    "train.lr_classifier_incremental",
    "train.lr_background_factor",
    "train.freeze_bn",
    "train.freeze_extractor",
    "train.weight_decay_on",
    "train.freeze_old_classes",
    "train.fuse_old_weights",
)
"""Fields (or sections) that do not reach the weights of the base step. What a method does to them follows from its
`base_step`."""


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
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision; fp16 scales the loss and needs a GPU."""
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


class Config(Section):
    moved: ClassVar = {
        "base": "only a config file builds on another one; write it there, or give that file as --config",
        "loss": "a loss is set by fields of its method now, such as method: {name: mbs, output_weight: 25, selective: "
        "false} for loss.output_distillation.weight and loss.pseudo_label.kind; docs/configuration.md lists them",
    }
    task: str | list[list[str]]
    """'15-1' (15 classes, then one a step), 'offline', lists of class names, one a step, or 'domains_11-5' (Cityscapes:
    11 cities, then 5 a step, all classes known)."""
    class_order: str | list[StrictInt] | None = None
    """Order in which a named task learns: data set ids, 0 first, or a published order such as '15-1_b' (VOC)."""
    setting: Literal["overlap", "disjoint", "partitioned"] = "overlap"
    """Which images serve a step."""
    method: MethodSection = METHODS["mbs"].Options(name="mbs")
    """The method: its name, or a mapping of its name and fields."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of weights, order and augmentation."""
    log: Annotated[str, AfterValidator(check_folder_name)] = ""
    """Name of the run (`--log`): one folder name that starts with no dot; empty is the name of the config."""
    variant: str = ""
    """Name of the run's row in tables over many runs (`tools/summarize.py`); empty is the method's."""
    output_dir: Path = Path("runs")
    """Folder of the runs; this one's is output_dir/log."""
    data: DataSection
    """The data set and how it is read."""
    model: ModelSection = MODELS["deeplabv3"].Options(name="deeplabv3")
    """The network: its name, or a mapping of its name and fields."""
    train: TrainConfig
    """Optimisation."""
    init_from: BaseStep | None = None
    """Checkpoint of another run whose classes are those of step 0: this run starts at step 1 from it. A path, an
    address (`https://…`, with `#sha256=HEX` if it is known), or a name of docs/base_models.json."""
    continue_training: bool = False
    """Go on training the classes of `init_from`: step 0 starts from its weights and trains on this run's images (more
    data of the same classes), instead of being taken over."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of every step's training images that is held out, for tuning and for the choice of a checkpoint."""
    checkpoint: Literal["last", "best_holdout", "best_validation", "best_validation_new"] = "last"
    """Which weights a step ends with: the last, or those of the epoch that scores best on the held-out images, on the
    validation split over all classes seen, or there over the step's new classes (SSUL, MBS). The last two look at what
    the literature tests on."""
    memory: MemoryConfig = MemoryConfig()
    """Exemplar memory, for any method; the ids are in memory/step_{t}.txt of the run."""
    rare: RareConfig = RareConfig()
    """What rare classes are given, for any method that trains."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """The protocol of validation."""
    save_every: Annotated[int | str, AfterValidator(check_interval)] = "10m"
    """How often a step is saved on its way: iterations (500) or minutes ('10m')."""
    distributed: DistributedConfig = DistributedConfig()
    """What ranks do together."""
    logging: LoggingConfig = LoggingConfig()
    """What is written while a run trains."""

    @field_validator("task", mode="before")
    @classmethod
    def _task_is_no_number(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError(
                f"YAML read a number, {value}; write the task in quotes and with a dash, as '15-1'"
            )
        return value

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.output_dir / self.log

    @property
    def takes_base(self) -> bool:
        """Whether step 0 is taken over from `init_from`, so that nothing trains it."""
        return self.init_from is not None and not self.continue_training

    def to_yaml(self) -> str:
        """Return the whole configuration as YAML, defaults filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    log: str | None = None,
    check: Callable[[Config], object] = lambda _: None,
) -> Config:
    """Read a YAML file over its `base`, apply `key.sub=value` overrides and the method's defaults, validate the whole.

    check: raises ValueError, a line a problem, for what does not fit this machine or this code.
    Raises FileNotFoundError or ValueError with one line for every problem found.
    """
    layers = read_layers(path)
    return make_config(merge_layers(Config, layers), path, overrides, log, check, partial(source_of, layers))


def make_config(
    values: dict[str, Any],
    path: Path,
    overrides: Sequence[str] = (),
    log: str | None = None,
    check: Callable[[Config], object] = lambda _: None,
    source: Callable[[str], object] | None = None,
) -> Config:
    """`load_config` of values that a file `path`, such as a checkpoint, holds; overrides are set in `values`.

    source: which file gave a field, by its dotted name; None: `path`.
    """
    overridden, problems = apply_overrides(Config, values, overrides)
    if log or values.get("log") in (None, ""):
        values["log"] = log or path.stem
    method = METHODS.get(name_in(Config, values, "method"))
    if isinstance(values.get("model"), str):  # the name alone leaves room for what the method sets beside it
        values["model"] = {"name": values["model"]}
    values, wrong = merge(method.defaults_for(values) if method else {}, values), set()
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        described = describe_errors(error, Config, source or (lambda _: path), overridden)
        wrong = {field for field, _ in described}
        problems += [line for _, line in described]
        # What the other fields say to each other is told as well; those of a section that does not exist say nothing.
        wrong |= {
            field.removesuffix(".name") for field in wrong if choice_of(Config, field.removesuffix(".name"))
        }
        config = _stand_in(values, wrong)
    lines = _contradictions(config)
    try:
        check(config)
    except ValueError as error:
        lines += str(error).splitlines()
    judged = [field for field in wrong if field.partition(".")[0] in Config.model_fields]
    problems += [line for line in lines if not any(mentions(line, field) for field in judged)]
    if problems:
        raise ValueError("\n".join(problems))
    return config


def _contradictions(config: Config) -> list[str]:
    """Fields that are right one by one but not together; every line names all fields that it comes from."""
    train, problems = config.train, []
    if train.min_scale > train.max_scale:
        problems.append(
            f"train.min_scale: {train.min_scale} exceeds train.max_scale {train.max_scale}; it must not be larger"
        )
    if train.nesterov and (train.optimizer != "sgd" or train.momentum == 0):
        problems.append("train.nesterov: needs train.optimizer sgd and a train.momentum above 0")
    if config.evaluate.stride is not None and config.evaluate.mode != "sliding":
        problems.append(
            f"evaluate.stride: is for evaluate.mode sliding only, found {config.evaluate.mode}; set the mode too, or "
            "leave it out"
        )
    if config.evaluate.short_side != "crop" and config.evaluate.mode == "center_crop":
        problems.append(
            f"evaluate.short_side: found {config.evaluate.short_side} with evaluate.mode center_crop, which scales the "
            "short side to the crop; set evaluate.mode to whole or sliding, or leave it out"
        )
    if config.evaluate.stride is not None and config.evaluate.stride > train.crop_size:
        problems.append(
            f"evaluate.stride: {config.evaluate.stride} exceeds train.crop_size {train.crop_size}, the side of a "
            "window: pixels between windows would be left out; take at most the crop"
        )
    if config.checkpoint == "best_holdout" and config.val_fraction == 0:
        problems.append("checkpoint: best_holdout needs held-out images: set val_fraction, such as 0.1")
    if config.checkpoint == "best_validation_new" and is_domain_task(config.task):
        problems.append(
            f"checkpoint: best_validation_new scores the step's new classes, and task {config.task} brings domains "
            "instead; use best_validation or last"
        )
    if config.memory.size and config.data.train_on == "seen":
        problems.append(
            "memory.size: data.train_on seen (method joint) trains on all images of earlier steps already; set one only"
        )
    if config.continue_training and config.init_from is None:
        problems.append(
            "continue_training: needs the checkpoint to go on from: set init_from, or leave it out"
        )
    if config.class_order is not None and not isinstance(config.task, str):
        problems.append(
            "class_order: goes with a named task such as '15-1'; lists of names in task have their own order"
        )
    return problems + check_method(config)


def check_method(config: Config) -> list[str]:
    """Return a line for everything in the config that does not go with its method."""
    method, model = METHODS[config.method.name], MODELS[config.model.name]
    problems = []
    if method.needs_stages and not model.has_stages:
        problems.append(
            f"method.name: {config.method.name} compares the stages of a convolutional backbone, which model.name "
            f"{config.model.name} has not; use model.name deeplabv3, or another method"
        )
    classifier = getattr(config.model, "classifier", "rows")
    if classifier != "rows" and not method.takes_heads:
        able = ", ".join(name for name, other in METHODS.items() if other.takes_heads)
        problems.append(
            f"model.classifier: {classifier} is for method {able}, found method.name {config.method.name}; take rows"
        )
    if getattr(config.data, "saliency", None) is not None and not method.takes_heads:
        problems.append(
            f"data.saliency: method {config.method.name} uses none; leave it out, or take method ssul"
        )
    if method.needs_new_classes and is_domain_task(config.task):
        able = ", ".join(name for name, other in METHODS.items() if not other.needs_new_classes)
        problems.append(
            f"method.name: {config.method.name} needs new classes in every step, and task {config.task} brings domains "
            f"instead; use one of {able}"
        )
    if config.continue_training and not method.base_step.trains:
        problems.append(
            f"continue_training: method {config.method.name} solves for its classes; rerun it on all images, old and "
            "new, without init_from"
        )
    if config.rare != RareConfig() and not (method.trains or method.base_step.trains):
        able = ", ".join(name for name, other in METHODS.items() if other.trains)
        problems.append(
            f"rare: method {config.method.name} solves for its classes and trains nothing that these fields could "
            f"change; leave them out, or use one of {able}"
        )
    residuals = config.model.model_dump().get("background_residuals", "none")
    if residuals != "none" and not method.lowers_background:
        problems.append(
            f"model.background_residuals: found {residuals}, which method.name {config.method.name} does not train; "
            "set it to none, or take method barm"
        )
    return problems + _check_old_weights(config) + method.check(config)


def _check_old_weights(config: Config) -> list[str]:
    """What does not go with keeping old weights, wholly or in part."""
    train, name, problems = config.train, config.method.name, []
    for field in ("fuse_old_weights", "freeze_old_classes"):
        if getattr(train, field) and is_domain_task(config.task):
            problems.append(
                f"train.{field}: goes by old and new classes, and task {config.task} brings domains; set it to false"
            )
        if getattr(train, field) and not METHODS[name].trains:
            problems.append(f"train.{field}: method.name {name} trains no weights; set it to false")
    if train.fuse_old_weights and getattr(config.model, "compensation", False):
        problems.append(
            "train.fuse_old_weights: fuses weight by weight, and model.compensation gives a branch another meaning "
            "with every step; set one of them to false"
        )
    if train.fuse_old_weights and train.freeze_extractor:
        problems.append(
            "train.fuse_old_weights: train.freeze_extractor keeps all old weights as they are, so there is nothing to "
            "fuse; set one of them to false"
        )
    return problems


def _stand_in(values: Mapping[str, Any], wrong: Collection[str]) -> Config:
    """A config in which fields that are wrong or missing have some allowed value."""
    required = {
        "task": "1-1",
        "data": {"name": "folder"},  # whose classes nobody knows yet
        "train": {"batch_size": 1, "num_epochs": 1, "crop_size": 1, "lr_base": 1.0, "lr_incremental": 1.0},
    }
    return Config.model_validate(merge(required, without(values, wrong)))


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return 'field: theirs → ours' for every field that may change a result and differs."""
    return compare(ours, theirs, MAY_DIFFER)


def describe_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Say why a run whose stored configuration is `theirs` is none of `ours`; '' where results cannot differ."""
    differing = differing_fields(ours, with_defaults(theirs))
    foreign = foreign_fields(theirs)
    if differing and foreign:
        return (
            f"holds a run of another version of this code, whose config this one does not read ({', '.join(foreign)}); "
            "its results.json names the commit"
        )
    return f"holds a run with another config ({'; '.join(differing)}, there → here)" if differing else ""


def foreign_fields(values: Mapping[str, Any]) -> list[str]:
    """Return the fields of a stored configuration that this code does not know or allow."""
    try:
        Config.model_validate(values)
    except ValidationError as error:
        return list(dict.fromkeys(field for field, _ in describe_errors(error, Config, str)))
    return []


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the defaults of fields that are younger than it."""
    try:
        return Config.model_validate(values).model_dump(mode="json")
    except ValidationError:  # a field has changed its name or its range since
        return dict(values)
