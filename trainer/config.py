"""The whole configuration of a run: one frozen, typed object, from YAML and `--set key.sub=value`."""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, ValidationInfo, field_validator

from utils.config.yaml_file import load_yaml

METHODS: dict[str, dict[str, Any]] = {
    "mbs": {
        "loss": {
            "pseudo_label": {"enabled": True},
            "feature_distillation": {"enabled": True},
            "output_distillation": {"enabled": True},
            "orthogonal": {"enabled": True},
            "weight_transfer": True,
        }
    },
    "finetune": {},
    "joint": {"data": {"train_on": "seen"}},
    # LwF and ILT: the weights of MiB's comparison of methods for segmentation (arXiv 2002.00718).
    "lwf": {"loss": {"output_distillation": {"enabled": True, "kind": "plain", "weight": 100.0}}},
    "ilt": {
        "loss": {
            "feature_distillation": {"enabled": True, "kind": "plain", "weight": 100.0},
            "output_distillation": {"enabled": True, "kind": "plain", "weight": 100.0},
        }
    },
    "mib": {
        "loss": {
            "cross_entropy": "unbiased",
            "output_distillation": {"enabled": True, "kind": "unbiased", "weight": 10.0},
            "weight_transfer": True,
            "balanced_bias": True,
        }
    },
    "plop": {
        "loss": {
            "pseudo_label": {
                "enabled": True,
                "kind": "entropy",
                "threshold": 0.001,
                "adaptive_factor": True,
            },
            "local_pod": {"enabled": True},
            "weight_transfer": True,
            "balanced_bias": True,
        }
    },
    "ssul": {
        "train": {"freeze_extractor": True},
        "loss": {
            "cross_entropy": "bce",
            "pseudo_label": {"enabled": True, "kind": "sigmoid", "threshold": 0.7},
        },
    },
    "dkd": {
        "model": {"auxiliary_classifier": True},
        "loss": {
            "cross_entropy": "bce_new",
            "output_distillation": {"enabled": True, "kind": "binary", "weight": 5.0},
            "decomposed_distillation": {"enabled": True, "weight": 5.0},
        },
    },
}
"""What a method sets; a field that the file or `--set` names wins over it. A `method` given by `--set` leaves out the
`loss` section of a file that was written for another one: its weights belong to that one's terms."""

BINARY = ("bce", "bce_new")
"""Kinds of `loss.cross_entropy` whose scores are sigmoids; they share base steps with each other only."""

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
"""Fields (or sections) that cannot change a result: a run may be continued with other values. What becomes of files
that cannot be read is among them, so that a run which met one can go on."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """pydantic takes true for 1, and 1 for true."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        allowed = set(get_args(annotation)) or {annotation}
        if isinstance(value, bool) and bool not in allowed and allowed & {int, float}:
            raise ValueError("expected a number, not true or false")
        if isinstance(value, int | float) and not isinstance(value, bool) and bool in allowed:
            raise ValueError("expected true or false" + (", or a text" if str in allowed else ""))
        return value


class ShapesConfig(Section):
    num_train: int = Field(600, ge=1)
    """Training images drawn."""
    num_val: int = Field(100, ge=1)
    """Validation images drawn."""
    image_size: int = Field(96, ge=16)
    """Side of an image, in pixels."""
    seed: int = Field(0, ge=0)
    """What is drawn; independent of the run's seed, so that seeds share their data."""


class DataConfig(Section):
    name: Literal["voc", "ade20k", "cityscapes", "folder", "shapes"]
    """The data set."""
    root: Path = Path("data_root")
    """Folder that holds VOCdevkit/, ADEChallengeData2016/, leftImg8bit/ and gtFine/ (`cityscapes`), or images/, masks/
    and classes.txt (`folder`)."""
    num_workers: int = Field(4, ge=0)
    """Processes that read images, a rank."""
    train_on: Literal["step", "seen"] = "step"
    """Images and labels a step learns from: its own classes', or those of every class so far (`joint`)."""
    on_error: Literal["raise", "skip"] = "raise"
    """An image or mask that cannot be read ends the run, or is left out (in training: replaced by the step's next
    image), counted and named."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """Share of a split's or a step's images that `skip` may leave out before the run ends."""
    shapes: ShapesConfig = ShapesConfig()
    """What `name: shapes` draws."""


class ModelConfig(Section):
    name: Literal["deeplabv3", "segmenter"] = "deeplabv3"
    """The architecture."""
    backbone: str = "resnet101"
    """Any timm model with feature maps at the output stride (deeplabv3), any plain ViT of timm (segmenter)."""
    pretrained: bool | str = True
    """ImageNet weights of the backbone: true fetches timm's, a path reads a state dict, false starts at random."""
    output_stride: Literal[8, 16, 32] = 16
    """Image size over feature grid size (deeplabv3)."""
    channels: int = Field(256, ge=1)
    """Channels of the distilled features; of each ASPP branch (deeplabv3), of the decoder (segmenter)."""
    patch_size: int | None = Field(None, ge=1)
    """Side of a ViT's patch in pixels, where it is not to be the backbone's own (segmenter)."""
    num_blocks: int = Field(2, ge=1)
    """Transformer blocks of the decoder (segmenter)."""
    num_heads: int = Field(12, ge=1)
    """Attention heads of each of them (segmenter)."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Stochastic depth of the last of them; it rises linearly from 0 (segmenter)."""
    auxiliary_classifier: bool = False
    """One classifier of no class, which learns that no image so far shows a class to come; new classes start as its
    copies (DKD; deeplabv3). Trained from the base step on; one that init_from lacks starts as the background's."""


class TrainConfig(Section):
    batch_size: int = Field(ge=1)
    """Images an iteration, over all ranks and accumulated micro-batches."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches that a rank's share of the batch is cut into, to save memory; the gradient is the same where
    BatchNorm is frozen, else its statistics are a micro-batch's."""
    num_epochs: int = Field(ge=1)
    """Passes over a step's images."""
    num_epochs_incremental: int | None = Field(None, ge=1)
    """The same for incremental steps, where it differs."""
    crop_size: int = Field(ge=1)
    """Side of the training crop and of the evaluation, in pixels."""
    min_scale: float = Field(0.5, gt=0)
    """Smallest random scale of a training image, 1 being its short side at the crop's."""
    max_scale: float = Field(2.0, gt=0)
    """Largest random scale of a training image."""
    pad_label: Literal["ignore", "background"] = "ignore"
    """Label of what lies outside an image smaller than the crop."""
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
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD (beta 1 of AdamW)."""
    nesterov: bool = False
    """Nesterov's momentum (SGD)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of every parameter."""
    schedule: Literal["poly", "constant", "cosine"] = "poly"
    """Learning rate over the iterations of a step; poly has power 0.9."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; null does not clip."""
    freeze_bn: bool = True
    """Keep BatchNorm (statistics and affine) as the base step left it in incremental steps."""
    freeze_extractor: bool = False
    """Train the classifier of the new classes only in incremental steps (SSUL)."""
    sync_bn: bool = True
    """BatchNorm statistics over all ranks (GPUs only)."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision; fp16 scales the loss and needs a GPU."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    compile: bool = False
    """torch.compile the model."""

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_not_false(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false


class PseudoLabelConfig(Section):
    enabled: bool = False
    """Pseudo-labelling of the background by the old model."""
    kind: Literal["selective", "plain", "entropy", "sigmoid"] = "selective"
    """By probability, unsure old classes ignored (MBS) or left as background (`plain`); by entropy under the class's
    median over the step's images, all else ignored (PLOP); by score of a sigmoid, all else background (SSUL)."""
    weight: float = Field(1.0, ge=0)
    """Weight of pseudo-labelled pixels in the cross-entropy; labelled ones have 1."""
    threshold: float = Field(0.7, ge=0, le=1)
    """Probability (`sigmoid`: score) from which an old class is taken over; `entropy`: the least that a class's
    threshold may be, 1 being the entropy of knowing nothing."""
    adaptive_factor: bool = False
    """Scale every image's cross-entropy by the share of its background that got a pseudo-label (PLOP)."""


class TermConfig(Section):
    enabled: bool = False
    """Whether the term takes part in incremental steps."""
    weight: float = Field(1.0, ge=0)
    """Its factor in the total loss."""


class FeatureDistillationConfig(TermConfig):
    kind: Literal["adaptive", "plain"] = "adaptive"
    """Cells weighted by what the old model knows (MBS), or all alike (ILT)."""


class OutputDistillationConfig(TermConfig):
    kind: Literal["label_guided", "plain", "unbiased", "binary"] = "label_guided"
    """Old background expected of the labelled class (MBS), old classes alone (LwF, ILT), new classes joined to the
    background (MiB), or a sigmoid a class (DKD)."""
    weight: float = Field(25.0, ge=0)
    """λ; acts as λ/K, the distillation being a mean over channels (of the old model for `plain` and `unbiased`);
    `binary` is their sum."""


class LocalPodConfig(Section):
    enabled: bool = False
    """Whether the term takes part in incremental steps; needs model.name deeplabv3."""
    weight: float = Field(0.01, ge=0)
    """Factor of the backbone's stages; all three are scaled by √(classes / new classes)."""
    features_weight: float = Field(0.01, ge=0)
    """Factor of the features before the classifier."""
    logits_weight: float = Field(0.0005, ge=0)
    """Factor of the logits on the feature grid."""


class LossConfig(Section):
    cross_entropy: Literal["plain", "unbiased", "bce", "bce_new"] = "plain"
    """Over a softmax; over one whose background may be any old class (MiB; incremental steps); over a sigmoid a class
    (SSUL; the base step too); the same, in incremental steps of the new classes alone (DKD)."""
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    """Pseudo-labelling."""
    feature_distillation: FeatureDistillationConfig = FeatureDistillationConfig()
    """Feature distillation."""
    output_distillation: OutputDistillationConfig = OutputDistillationConfig()
    """Output distillation."""
    orthogonal: TermConfig = TermConfig()
    """Orthogonal loss on the class tokens."""
    local_pod: LocalPodConfig = LocalPodConfig()
    """Local POD over the backbone's stages, the features and the logits (PLOP)."""
    decomposed_distillation: TermConfig = TermConfig()
    """Distillation of what speaks for and against each old class (DKD); needs model.name deeplabv3."""
    auxiliary_weight: float = Field(1.0, ge=0)
    """Factor of what model.auxiliary_classifier learns; no other parameter learns from it."""
    weight_transfer: bool = False
    """New classes start as copies of the background's classifier."""
    balanced_bias: bool = False
    """With weight_transfer: background and new classes share what the background scored (MiB's initialisation)."""


class MemoryConfig(Section):
    size: int = Field(0, ge=0)
    """Images of earlier steps that every incremental step trains on too; 0 is none."""
    strategy: Literal["random", "class_balanced"] = "random"
    """Which ones: any, or each for the class that the memory shows least."""
    labels: Literal["step", "seen"] = "seen"
    """What is labelled in them: the step's classes, as in its own images, or all classes seen so far."""


class EvaluateConfig(Section):
    mode: Literal["center_crop", "whole", "sliding"] = "center_crop"
    """What the model sees of an image whose short side is at the crop: its centre (the literature), all of it at once,
    or all of it in windows of the crop's size; the last two count at the label's own size."""
    stride: int | None = Field(None, ge=1)
    """Pixels from one window to the next (`sliding` only), no more than the crop; null is two thirds of the crop, as
    PSPNet and its successors have it. Probabilities are averaged where windows overlap."""
    flip: bool = False
    """Test-time augmentation: average the probabilities with those of the mirrored image."""
    scales: list[Annotated[float, Field(gt=0)]] = Field([1.0], min_length=1)
    """Test-time augmentation: average the probabilities over the image at these scales, 1 being as `mode` has it."""
    future: Literal["ignore", "background"] = "ignore"
    """What pixels of classes not yet learned count as."""
    batch_size: int = Field(8, ge=1)
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
    num_panels: int = Field(4, ge=0)
    """Validation images shown after every step, always the same, in report.html and TensorBoard."""
    wandb: str | None = Field(None, min_length=1)
    """Project in Weights & Biases that curves and panels go to as well (pip install wandb); null writes none."""


class Config(Section):
    task: str | list[list[str]]
    """'15-1' (15 classes, then one a step), 'offline', or lists of class names, one a step."""
    class_order: str | list[StrictInt] | None = None
    """Order in which a named task learns: data set ids, 0 first, or a published order such as '15-1_b' (VOC)."""
    setting: Literal["overlap", "disjoint", "partitioned"] = "overlap"
    """Which images serve a step."""
    method: Literal["mbs", "finetune", "joint", "lwf", "ilt", "mib", "plop", "ssul", "dkd"] = "mbs"
    """Preset of the terms below; a term set by hand wins over it."""
    seed: int = Field(0, ge=0)
    """Seed of weights, order and augmentation."""
    log: str = Field("", pattern=r"^([^/\\.][^/\\]*)?$")
    """Name of the run (`--log`): one folder name that starts with no dot; empty is the name of the config."""
    variant: str = ""
    """Name of the run's row in tables over many runs (`tools/summarize.py`); empty is the method's."""
    output_dir: Path = Path("runs")
    """Folder of the runs; this one's is output_dir/log."""
    data: DataConfig
    """The data set and how it is read."""
    model: ModelConfig = ModelConfig()
    """The network."""
    train: TrainConfig
    """Optimisation."""
    init_from: Path | None = None
    """Checkpoint of another run whose classes are those of step 0: this run starts at step 1 from it."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of every step's training images that is held out, for tuning and for the choice of a checkpoint."""
    checkpoint: Literal["last", "best_holdout", "best_validation"] = "last"
    """Which weights a step ends with: the last, or those of the epoch that scores best on the held-out images or on the
    validation split. The last of these looks at what the literature tests on."""
    memory: MemoryConfig = MemoryConfig()
    """Exemplar memory, for any method; the ids are in memory/step_{t}.txt of the run."""
    loss: LossConfig = LossConfig()
    """The parts of the method."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """The protocol of validation."""
    save_every: int | str = "10m"
    """How often a step is saved on its way: iterations (500) or minutes ('10m')."""
    distributed: DistributedConfig = DistributedConfig()
    """What ranks do together."""
    logging: LoggingConfig = LoggingConfig()
    """What is written while a run trains."""

    @field_validator("save_every")
    @classmethod
    def _save_every_is_a_length(cls, value: int | str) -> int | str:
        is_length = value >= 1 if isinstance(value, int) else re.fullmatch(r"\d+(\.\d+)?m", value) is not None
        if not is_length:
            raise ValueError("expected a number of iterations, such as 500, or of minutes, such as 10m")
        return value

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

    def to_yaml(self) -> str:
        """Return the whole configuration, presets applied, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    log: str | None = None,
    check: Callable[[Config], object] = lambda _: None,
) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides and the method's preset, and validate the whole.

    check: raises ValueError, a line a problem, for what does not fit this machine or this code.
    Raises FileNotFoundError or ValueError with one line for every problem found.
    """
    return make_config(read_yaml(path), path, overrides, log, check)


def make_config(
    values: dict[str, Any],
    path: Path,
    overrides: Sequence[str] = (),
    log: str | None = None,
    check: Callable[[Config], object] = lambda _: None,
) -> Config:
    """`load_config` of values that a file `path`, such as a checkpoint, holds; overrides are set in `values`."""
    problems: list[str] = []
    overridden: list[str] = []
    own_method = values.get("method", "mbs")
    parsed: list[tuple[str, Any]] = []
    for override in overrides:
        try:
            parsed.append(parse_override(override))
        except ValueError as error:
            problems.append(str(error))
    if dict(parsed).get("method", own_method) != own_method:
        values.pop("loss", None)
    for key, value in parsed:
        try:
            _set(values, key, value)
            overridden.append(key)
        except ValueError as error:
            problems.append(str(error))
    values["log"] = log or values.get("log") or path.stem
    preset = METHODS.get(str(values.get("method", "mbs")), {})
    values, wrong = _merge(preset, values), set()
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += [_describe(detail, path, overridden) for detail in error.errors()]
        wrong = {".".join(_field_names(detail["loc"])) for detail in error.errors()}
        # What the other fields say to each other is told as well.
        config = _stand_in(values, wrong)
    lines = _contradictions(config)
    try:
        check(config)
    except ValueError as error:
        lines += str(error).splitlines()
    judged = [field for field in wrong if field.partition(".")[0] in Config.model_fields]
    problems += [line for line in lines if not any(_mentions(line, field) for field in judged)]
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
    if config.evaluate.stride is not None and config.evaluate.stride > train.crop_size:
        problems.append(
            f"evaluate.stride: {config.evaluate.stride} exceeds train.crop_size {train.crop_size}, the side of a "
            "window: pixels between windows would be left out; take at most the crop"
        )
    if config.checkpoint == "best_holdout" and config.val_fraction == 0:
        problems.append("checkpoint: best_holdout needs held-out images: set val_fraction, such as 0.1")
    if config.loss.local_pod.enabled and config.model.name != "deeplabv3":
        problems.append(
            f"loss.local_pod.enabled: compares the stages of a convolutional backbone, which model.name "
            f"{config.model.name} has not; use model.name deeplabv3, or another method"
        )
    if config.model.name != "deeplabv3":
        for field, is_on in (
            ("model.auxiliary_classifier", config.model.auxiliary_classifier),
            ("loss.decomposed_distillation.enabled", config.loss.decomposed_distillation.enabled),
        ):
            if is_on:
                problems.append(
                    f"{field}: is about the rows of a 1x1 classifier, which model.name {config.model.name} has not; "
                    "use model.name deeplabv3, or another method"
                )
    if config.model.auxiliary_classifier and config.loss.weight_transfer:
        problems.append(
            "model.auxiliary_classifier: new classes start as its copies, or with loss.weight_transfer as the "
            "background's; set one only"
        )
    if config.memory.size and config.data.train_on == "seen":
        problems.append(
            "memory.size: data.train_on seen (method joint) trains on all images of earlier steps already; set one only"
        )
    if config.loss.balanced_bias and not config.loss.weight_transfer:
        problems.append(
            "loss.balanced_bias: shares the background's score with its copies; needs loss.weight_transfer"
        )
    if config.loss.pseudo_label.adaptive_factor and not config.loss.pseudo_label.enabled:
        problems.append("loss.pseudo_label.adaptive_factor: needs loss.pseudo_label.enabled")
    loss, is_binary = config.loss, config.loss.cross_entropy in BINARY
    for field, is_on, kind, binary_kind in (
        ("pseudo_label", loss.pseudo_label.enabled, loss.pseudo_label.kind, "sigmoid"),
        ("output_distillation", loss.output_distillation.enabled, loss.output_distillation.kind, "binary"),
    ):
        if is_on and (kind == binary_kind) != is_binary:
            allowed = binary_kind if is_binary else f"any but {binary_kind}"
            problems.append(
                f"loss.{field}.kind: {kind} does not go with loss.cross_entropy {loss.cross_entropy}, whose scores are "
                f"{'sigmoids' if is_binary else 'a softmax'}; take {allowed}, or another cross-entropy"
            )
    if config.class_order is not None and not isinstance(config.task, str):
        problems.append(
            "class_order: goes with a named task such as '15-1'; lists of names in task have their own order"
        )
    return problems


def _stand_in(values: Mapping[str, Any], wrong: Collection[str]) -> Config:
    """A config in which fields that are wrong or missing have some allowed value."""
    required = {
        "task": "1-1",
        "data": {"name": "folder"},  # whose classes nobody knows yet
        "train": {"batch_size": 1, "num_epochs": 1, "crop_size": 1, "lr_base": 1.0, "lr_incremental": 1.0},
    }
    return Config.model_validate(_merge(required, _without(values, wrong)))


def _without(values: Mapping[Any, Any], fields: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Nested mappings without the fields of these dotted names or with items of these names, or no name at all."""
    kept = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or name in fields:
            continue
        if not any(field.startswith(f"{name}.") for field in fields):
            kept[key] = value
        elif isinstance(value, Mapping):
            kept[key] = _without(value, fields, f"{name}.")
    return kept


def _mentions(line: str, field: str) -> bool:
    """Whether a message names a field, a section that holds it or a field of it."""
    return re.search(rf"(?<![\w.]){re.escape(field)}(?!\w)", line) is not None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}, expected a mapping of fields")
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """Split `key.sub=value`; the value is read as YAML. Raises ValueError."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"--set {override}: expected key.sub=value")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: the value is not valid YAML: {error}") from error


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return 'field: theirs → ours' for every field that may change a result and differs."""
    ours_flat, theirs_flat = dict(flatten(ours)), dict(flatten(theirs))
    fields = sorted(ours_flat.keys() | theirs_flat.keys())
    return [
        f"{field}: {theirs_flat.get(field)} → {ours_flat.get(field)}"
        for field in fields
        if ours_flat.get(field) != theirs_flat.get(field)
        and not any(field == free or field.startswith(f"{free}.") for free in MAY_DIFFER)
    ]


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the defaults of fields that are younger than it."""
    try:
        return Config.model_validate(values).model_dump(mode="json")
    except ValidationError:  # a field has changed its name or its range since
        return dict(values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested mappings with its dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        merged[key] = (
            _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, field = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ValueError(f"--set {key}: '{section}' is not a section")
    values[field] = value


def _describe(error: Any, path: Path, overridden: Sequence[str]) -> str:
    names = _field_names(error["loc"])
    field = ".".join(names)
    is_overridden = any(
        f"{field}.".startswith(f"{key}.") or key.startswith(f"{field}.") for key in overridden
    )
    source = "--set" if is_overridden else str(path)
    if error["type"] == "extra_forbidden":
        known = list(_section(names[:-1]).model_fields)
        near = difflib.get_close_matches(names[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{source}: {field}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{source}: {field}: missing, has no default"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if isinstance(error["input"], dict | BaseModel) else f", found {error['input']!r}"
    return f"{source}: {field + ': ' if field else ''}{message}{found}"


def _field_names(location: Sequence[str | int]) -> list[str]:
    """Return the keys and indices of a pydantic location, without the types that it tried."""
    section: Any = Config
    names = []
    for part in location:
        if isinstance(part, int):
            names.append(str(part))
        elif section is not None:
            names.append(part)
            field = section.model_fields.get(part)
            section = field.annotation if field and hasattr(field.annotation, "model_fields") else None
    return names


def _section(names: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = Config
    for name in names:
        annotation = section.model_fields[name].annotation
        assert isinstance(annotation, type)
        section = annotation
    return section
