"""The whole configuration of a run: one frozen, typed object, from YAML and `--set key.sub=value`.

The sections of data sets, models and methods stand beside their owners; a section's fields are those of the one that is
chosen by name.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, Field, StrictInt, ValidationError, field_validator

from datasets import DATASETS
from datasets.config import DataConfig
from methods import METHODS, Method
from models import MODELS, ModelOptions
from trainer.contradictions import contradictions
from trainer.rare import RareConfig
from trainer.sections import DistributedConfig, EvaluateConfig, LoggingConfig, MemoryConfig, TrainConfig
from trainer.shared_base import BaseStep
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
    lines = contradictions(config)
    try:
        check(config)
    except ValueError as error:
        lines += str(error).splitlines()
    judged = [field for field in wrong if field.partition(".")[0] in Config.model_fields]
    problems += [line for line in lines if not any(mentions(line, field) for field in judged)]
    if problems:
        raise ValueError("\n".join(problems))
    return config


def _stand_in(values: Mapping[str, Any], wrong: Collection[str]) -> Config:
    """A config in which fields that are wrong or missing have some allowed value."""
    required = {
        "task": "1-1",
        "data": {"name": "folder"},  # whose classes nobody knows yet
        "train": {"batch_size": 1, "num_epochs": 1, "crop_size": 1, "lr_base": 1.0, "lr_incremental": 1.0},
    }
    return Config.model_validate(merge(required, without(values, wrong)))
