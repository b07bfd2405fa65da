"""What a method is: its options, its phases, and how the terms of its loss become means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from losses.feature_distillation import embedding_distillation
from losses.fused import binary_terms, softmax_terms
from losses.pieces import Logits
from losses.reduction import mean_or_zero
from models import MODELS, SegmentationModel
from models.base import Stages
from utils.config.section import NamedSection
from utils.labels import IGNORE_INDEX


class Output(Protocol):
    """What a model says of a batch, as `models.SegOutput` describes it, with the logits at image size.

    In training, `logits` are computed when asked for, `pixel_logits` piece by piece where a loss reads them
    (`losses.pieces`).
    """

    @property
    def logits(self) -> Tensor: ...
    @property
    def pixel_logits(self) -> Logits: ...
    @property
    def grid_logits(self) -> Tensor: ...
    @property
    def features(self) -> Tensor: ...
    @property
    def class_tokens(self) -> Tensor: ...
    @property
    def class_embeddings(self) -> Tensor | None: ...
    @property
    def stages(self) -> tuple[Tensor, ...]: ...
    @property
    def backbone(self) -> Tensor | None: ...
    @property
    def ears(self) -> tuple[Tensor, ...]: ...
    @property
    def head_outputs(self) -> tuple[Tensor, ...]: ...


class Looks(Protocol):
    """The step's images as its first epoch shows them, a rank's share of them, seen by the old model."""

    @property
    def device(self) -> torch.device:
        """Where images, labels and outputs are."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Output]]:
        """Yield images (B,3,H,W), labels (B,H,W) int64 and what the old model says of them, without gradient."""

    def batches(self, num_epochs: int) -> Iterator[tuple[float, list[tuple[Tensor, Tensor]]]]:
        """Yield this rank's images and labels as training for so many epochs would see them, a batch a time.

        A batch is a list of micro-batches, behind the share (0..1) of all batches that came before it.
        """

    def whole_images(self, of_base_step: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (1,3,H,W) and labels (1,H',W') int64 of this step or of the base step, whole and as they are."""

    def seen_by(
        self, model: SegmentationModel | None, of_base_step: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, Output]]:
        """Yield the same of any model, which is evaluated; None is the old one. of_base_step: the images of step 0."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes up to the step's, background first."""

    @property
    def setting(self) -> str:
        """Which images serve a step: 'overlap', 'disjoint' or 'partitioned'."""

    @property
    def iterations_per_epoch(self) -> int:
        """Updates in one pass over the step's images."""

    def sum(self, x: Tensor) -> Tensor:
        """Return x added up over all ranks."""

    def say(self, text: str) -> None:
        """Tell the user, on the terminal and in the run's log."""


@dataclass(frozen=True)
class Targets:
    """What a step asks of the model for a (micro-)batch, before the model has seen it.

    labels: (B,H,W) int64, as given. pseudo_labels: (B,H,W) int64, what the cross-entropy asks for. counts: what the
    means run over, by name, scalars; those of all ranks and micro-batches are added up before a term is divided by one,
    and `terms` finds these sums here. Further ones, of any shape, may serve the terms only. own: further tensors that
    the method's terms need; `weights` (B,H,W) are factors of the pixels in the cross-entropy.
    """

    labels: Tensor
    pseudo_labels: Tensor
    counts: dict[str, Tensor]
    own: dict[str, Tensor] = field(default_factory=dict)


class Term(NamedTuple):
    """A term of the loss: `weight` · `total` / (the count named `over` · `per`).

    total: a sum over this (micro-)batch, a scalar, float32 at least. over: a key of `Targets.counts`. per: how many
    elements each of what is counted has, such as channels.
    """

    total: Tensor
    over: str
    per: int = 1
    weight: float | Tensor = 1.0


def means(terms: Mapping[str, Term], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weighted terms; added up over all ranks and micro-batches they are the loss.

    counts: those of all ranks and micro-batches together, so that a gradient does not depend on how a batch is cut.
    An empty selection gives a zero that keeps its graph.
    """
    found = {}
    for name, term in terms.items():
        dtype = term.total.dtype
        weight = term.weight.to(dtype) if isinstance(term.weight, Tensor) else term.weight
        found[name] = weight * mean_or_zero(term.total, counts[term.over].to(dtype) * term.per)
    return found


class Method:
    """One step of a method; a paper is a subclass with its options and those of the seven phases that it changes.

    The phases are called in this order: `check`, `parts`, `add_classes`, `begin_step`, for every update `targets` and
    `terms`, and `end_step`. This class is fine-tuning: cross-entropy on the labels as given. It also trains the base
    step of every method that names no other class in `base_step`.

    `begin_step` runs once a step: when a step is resumed, `state`, model and `modules` come from the mid-step save.

    options: the method's section of the config. num_old: classes before the step, background among them; 0 in the
    base step. num_new: classes that the step adds. num_future: classes of later steps. state: plain tensors that
    the method carries through a step and from step to step; they are part of every save, and of the weights that
    `checkpoint: best_…` chooses. All ranks must hold the same: the main one's are saved. modules: what `parts` has
    made, on the step's device. parts_are_trained: whether an earlier step has trained them. model: the network that
    trains, for terms that ask it for more than its output of the batch. looks: the step's images, for an `end_step`
    that goes over them.
    """

    class Options(NamedSection):
        """Fields of the method in the config."""

    base_step: ClassVar[type["Method"]]
    """The class that trains the base step of this method. Methods of equal ones share base steps in sweeps, but for
    fields of the config that are among its `Options`."""
    same_network_as: ClassVar[type["Method"] | None] = None
    """For a class that trains base steps: another one whose base step ends with the same network, bit for bit. This one
    may add modules and state, which a run that starts from the other's base step does not find. None: there is none."""
    scores: ClassVar[Literal["softmax", "sigmoid"]] = "softmax"
    """What the model's logits are read as."""
    needs_stages: ClassVar[Stages] = False
    """Whether a term looks at the feature maps of the backbone's stages, and at which."""
    lowers_background: ClassVar[bool] = False
    """Whether the method is about a background with residuals, which no other method trains."""
    trains: ClassVar[bool] = True
    """Whether the step has iterations; false where `begin_step` does all there is to do."""
    takes_heads: ClassVar[bool] = False
    """Whether classes may be scored by heads of their own (`model.classifier`), one of an unknown class among them."""
    needs_new_classes: ClassVar[bool] = True
    """Whether a step without new classes, as tasks of domains have them, means nothing to the method."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Other fields of the config that the method sets where neither file nor command line does."""

    def __init__(self, options: Any, num_old: int, num_new: int, num_future: int = 0) -> None:
        self.options = options
        self.num_old = num_old
        self.num_new = num_new
        self.num_future = num_future
        self.state: dict[str, Tensor] = {}
        self.modules = nn.ModuleDict()
        self.parts_are_trained = False
        self.model: SegmentationModel | None = None
        self.looks: Looks | None = None

    @property
    def needs_old_model(self) -> bool:
        """Whether targets or terms look at the old model."""
        return False

    @property
    def begins_with(self) -> str | None:
        """What of `state` step 1 finds in the base step's images where the base step's checkpoint lacks it."""
        return None

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `defaults` and what follows from other fields of the config; values: those given, unchecked."""
        return cls.defaults

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Return a line for all in `config` (the whole, `trainer.config.Config`) that does not go with the method."""
        return []

    def parts(self, channels: int) -> dict[str, nn.Module]:
        """Return modules that are trained, wrapped and saved with the network; channels: D of its features."""
        return {}

    def add_classes(self, model: SegmentationModel, num_new: int) -> None:
        """Add the step's classes to the model: here they start at random."""
        model.grow(num_new)

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Measure or fit what the step needs to know of its images, into `state`, or prepare the model.

        model: the network that will train. A loop over `looks` asks the old model, so `needs_old_model` must hold.
        """

    def targets(self, labels: Tensor, old: Output) -> Targets:
        """Return what is asked of a batch.

        labels: (B,H,W) int64; old: the old model's output without gradient, None unless `needs_old_model` holds. All
        micro-batches of an update are asked for before the terms of any.
        """
        return self.make_targets(labels)

    def terms(self, output: Output, old: Output, targets: Targets) -> dict[str, Term]:
        """Return the terms of the loss by name, for a batch of which `targets` has asked; old: as there."""
        weights = targets.own.get("weights")
        return {"cross_entropy": self.cross_entropy(output.pixel_logits, targets.pseudo_labels, weights)}

    def end_step(self, model: SegmentationModel, old_model: SegmentationModel | None) -> None:
        """Change the trained weights before they are saved, or note in `state` what later steps need.

        old_model: None unless `needs_old_model` holds.
        """

    def compile(self) -> None:
        """Let `targets` and `terms` be compiled where they are first called (torch.compile)."""
        vars(self).update(targets=torch.compile(self.targets), terms=torch.compile(self.terms))

    def make_targets(
        self,
        labels: Tensor,
        pseudo_labels: Tensor | None = None,
        counts: Mapping[str, Tensor] | None = None,
        **own: Tensor,
    ) -> Targets:
        """Return targets that count pixels ('pixels'), those that have a label ('labelled'), 'images' and 'batches'.

        counts: more of them, the method's own.
        """
        pseudo_labels = labels if pseudo_labels is None else pseudo_labels
        # Filled on the device: a number that is copied there would make the host wait.
        sizes = {"pixels": labels.numel(), "images": len(labels), "batches": 1}
        common = {name: labels.new_full((), size) for name, size in sizes.items()}
        common["labelled"] = (pseudo_labels != IGNORE_INDEX).sum()
        return Targets(labels, pseudo_labels, {**common, **(counts or {})}, own)

    def cross_entropy(
        self,
        logits: Logits,
        labels: Tensor,
        weights: Tensor | None = None,
        over: str = "labelled",
        first_class: int = 0,
        positive_weight: float = 1.0,
    ) -> Term:
        """Return the cross-entropy over labelled pixels, of a softmax or of a sigmoid a class as `scores` says.

        logits: (B,K,H,W); labels: (B,H,W) int64; weights: (B,H,W), the pixels' factors, None for 1. first_class: the
        first class whose sigmoid is asked; positive_weight: factor of a sigmoid at pixels that show its class.
        """
        if self.scores == "sigmoid":
            total, _ = binary_terms(logits, labels, IGNORE_INDEX, weights, first_class, positive_weight)
        else:
            total, _ = softmax_terms(logits, targets=labels, weights=weights, ignore_index=IGNORE_INDEX)
        return Term(total, over)


Method.base_step = Method


class SigmoidMethod(Method):
    """Fine-tuning with a sigmoid a class, background among them; the base step of methods that need such scores."""

    scores = "sigmoid"


SigmoidMethod.base_step = SigmoidMethod


def embedding_terms(output: Output, old: Output, weight: float) -> dict[str, Term]:
    """Return the distillation of the old classes' embeddings, where the model decodes classes per image (Segmenter)."""
    if output.class_embeddings is None or old.class_embeddings is None:
        return {}
    total, _ = embedding_distillation(output.class_embeddings, old.class_embeddings)
    return {"embedding_distillation": Term(total, "images", old.class_embeddings[0].numel(), weight)}


def stack_counts(targets: list[Targets]) -> Tensor:
    """Return the counts of several micro-batches added up, (N,) float64 in the order of the first one's names."""
    counts = [torch.cat([count.double().flatten() for count in target.counts.values()]) for target in targets]
    return torch.stack(counts).sum(dim=0)


def refuse_without_rows(config: Any) -> list[str]:
    """Return what `Method.check` of a method that needs the rows of a 1x1 classifier says of a model without them."""
    if MODELS[config.model.name].has_linear_classifier:
        return []
    return [
        f"method.name: {config.method.name} is about the rows of a 1x1 classifier, which model.name "
        f"{config.model.name} has not; use model.name deeplabv3, or another method"
    ]
