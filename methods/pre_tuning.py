"""NeST (arXiv 2407.14142): new rows of the classifier are tuned before the step trains, as an option of methods."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from losses.unbiased import unbiased_cross_entropy
from methods.base import Looks, Method
from models import MODELS, SegmentationModel
from models.base import Start
from models.classifier import GrowingClassifier
from utils.config.section import NamedSection
from utils.labels import IGNORE_INDEX

SIDE = 128
"""Pixels of the grid on which importance is measured, a side."""


class PreTuned(Method):
    """A method whose new classes may be tuned while all else rests; then the step begins from them.

    The loss of the tuning is MiB's unbiased cross-entropy on the labels as given, a mean over labelled pixels. The
    network is in evaluation mode. Nothing is carried on, and nothing that the step draws at random changes.
    """

    class Options(NamedSection):
        pre_tuning: Literal["off", "transformed", "direct"] = "off"
        """Tune new classes before the step (NeST): as transformations of all old rows, or, from the background's row
        on, directly."""
        pre_tuning_epochs: int = Field(5, ge=1, le=10**6)
        """Passes over the step's images for that."""
        pre_tuning_lr: float = Field(0.001, gt=0)
        """Its learning rate, poly to 0 (SGD with Nesterov's momentum 0.9, weight decay 1e-4)."""
        pre_tuning_align: bool = True
        """Give transformed rows the mean norm of the old rows, and their biases the norm of the old biases."""

    options: Options

    @classmethod
    def check(cls, config: Any) -> list[str]:
        """Refuse transformations of rows where classes are none."""
        if config.method.pre_tuning != "transformed" or MODELS[config.model.name].has_linear_classifier:
            return []
        return [
            "method.pre_tuning: transformed is about the rows of a 1x1 classifier, which model.name "
            f"{config.model.name} has not; use direct or off, or model.name deeplabv3"
        ]

    @property
    def start(self) -> Start:
        """As what new classes start where they are not tuned."""
        return "random"

    @property
    def needs_old_model(self) -> bool:
        """Whether importance is measured with it."""
        return self.options.pre_tuning == "transformed"

    def add_classes(self, model: SegmentationModel, num_new: int) -> None:
        """Add the classes; those that are tuned start as the background, whose bias is not lowered."""
        model.grow(num_new, start=self.start if self.options.pre_tuning == "off" else "background")

    def begin_step(self, model: SegmentationModel, looks: Looks) -> None:
        """Tune the new classes."""
        if self.options.pre_tuning == "off" or not self.num_new:
            return
        model.eval()
        if self.options.pre_tuning == "transformed":
            self.transform(model, looks)
        else:
            self.tune_directly(model, looks)

    def transform(self, model: SegmentationModel, looks: Looks) -> None:
        """Find new rows, and a background's, as transformations of the old rows, and put them into the model."""
        classifier = model.get_submodule("classifier")
        assert isinstance(classifier, GrowingClassifier)
        num_old, options = self.num_old, self.options
        rows, biases = (
            x.detach()[:num_old].clone() for x in (classifier.class_tokens(), classifier.biases())
        )
        start = Transformation.start(measure_importance(looks, rows, self.num_new), biases)

        def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                features = model(images, full_size=False).features.to(rows.dtype)
            weight, bias = start.classifier(rows, biases)
            logits = model.to_image_size(F.conv2d(features, weight[:, :, None, None], bias), images.shape[2:])
            return unbiased_cross_entropy(logits, labels, num_old, IGNORE_INDEX)

        tune(start.parameters(), loss, looks, options.pre_tuning_epochs, options.pre_tuning_lr)
        classifier.set_rows(*start.hand_over(rows, biases, options.pre_tuning_align))

    def tune_directly(self, model: SegmentationModel, looks: Looks) -> None:
        """Train the new classes' own parameters, all others as they are."""
        learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        model.requires_grad_(False)
        newest: list[nn.Parameter] = model.newest_parameters()
        for parameter in newest:
            parameter.requires_grad_()

        def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return unbiased_cross_entropy(model(images).logits, labels, self.num_old, IGNORE_INDEX)

        tune(newest, loss, looks, self.options.pre_tuning_epochs, self.options.pre_tuning_lr)
        for parameter, requires_grad in learns:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


@dataclass
class Transformation:
    """How new rows, and the background's, come from old rows w_k: w'_c = Σ_k P_c[k] · (M_c[k] ⊙ w_k).

    importance: M (K_new,K_old,D); projection: P (K_new,K_old); biases: β (K_new,); and of the background m_0 (D,) and
    s_0 (), w'_0 = s_0 · (m_0 ⊙ w_0).
    """

    importance: Tensor
    projection: Tensor
    biases: Tensor
    background: Tensor
    scale: Tensor

    @classmethod
    def start(cls, importance: Tensor, old_biases: Tensor) -> "Transformation":
        """Return that from which tuning starts: P is the softmax over old classes of Σ_d M, β the background's bias.

        Ours: β; the released code takes one random number for all.
        """
        return cls(
            importance.clone(),
            importance.sum(dim=2).softmax(dim=1),
            old_biases[:1].repeat(len(importance)),
            importance.new_ones(importance.shape[2]),
            importance.new_ones(()),
        )

    def parameters(self) -> list[Tensor]:
        """Return the five tensors, with gradients."""
        tensors = (self.importance, self.projection, self.biases, self.background, self.scale)
        return [tensor.requires_grad_() for tensor in tensors]

    def rows(self, old_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return w'_0 (1,D) and all w'_c (K_new,D) of old rows (K_old,D)."""
        new = torch.einsum("ck,ckd,kd->cd", self.projection, self.importance, old_rows)
        return (self.scale * self.background * old_rows[0])[None], new

    def classifier(self, old_rows: Tensor, old_biases: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (K,D) and biases (K,) of all classes while tuning."""
        background, new = self.rows(old_rows)
        return torch.cat([background, old_rows[1:], new]), torch.cat([old_biases, self.biases])

    @torch.no_grad()
    def hand_over(self, old_rows: Tensor, old_biases: Tensor, align: bool) -> tuple[Tensor, Tensor]:
        """Return the rows and biases with which the step begins; the background keeps its bias.

        align: the background keeps its norm, new rows get the mean norm of the K_old others, new biases together the
        norm of the old ones.
        """
        background, new = self.rows(old_rows)
        biases = self.biases.detach()
        if align:
            background = with_norm(background, old_rows[:1].norm())
            mean = torch.cat([background, old_rows[1:]]).norm(dim=1).mean()
            new = new * mean / positive(new.norm(dim=1).mean())
            biases = with_norm(biases, old_biases.norm())
        return torch.cat([background, old_rows[1:], new]), torch.cat([old_biases, biases])


def with_norm(x: Tensor, norm: Tensor) -> Tensor:
    """Return x scaled to a norm, a zero staying zero."""
    return x * (norm / positive(x.norm()))


def positive(x: Tensor) -> Tensor:
    """Return x as a divisor."""
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def measure_importance(looks: Looks, old_rows: Tensor, num_new: int) -> Tensor:
    """Return M (K_new,K_old,D) over the step's images of all ranks."""
    num_old, channels = old_rows.shape
    sums = torch.zeros(num_new, num_old, channels, dtype=torch.float64, device=looks.device)
    counts = sums.new_zeros(num_new)
    for _, labels, old in looks:
        total, number = importance_sums(old.features, labels, old.logits, old_rows, num_new)
        sums, counts = sums + total, counts + number
    return importance_of(looks.sum(sums), looks.sum(counts)).to(old_rows.dtype)


def importance_sums(
    features: Tensor, labels: Tensor, old_logits: Tensor, old_rows: Tensor, num_new: int
) -> tuple[Tensor, Tensor]:
    """Return Σ p_k · 1[f_d · w_kd > 0] over the pixels of each new class, (K_new,K_old,D) float64, and their number.

    All are brought to 128 x 128 pixels first. features: (B,D,h,w) of the old model; labels: (B,H,W) int64; old_logits:
    (B,K_old,H,W); old_rows: w (K_old,D).
    """
    num_old = len(old_rows)
    size = (SIDE, SIDE)
    labels = F.interpolate(labels[:, None].float(), size)[:, 0].long()
    f = F.interpolate(features.double(), size, mode="bilinear").permute(0, 2, 3, 1)
    p = F.interpolate(old_logits.double(), size, mode="bilinear").softmax(dim=1).permute(0, 2, 3, 1)
    sums, counts = [], []
    for c in range(num_old, num_old + num_new):
        of_class = labels == c
        # f · w is positive where both are, or neither is.
        signs = ((f[of_class] > 0, old_rows > 0), (f[of_class] < 0, old_rows < 0))
        sums.append(sum((p[of_class].T @ of_f.double() * of_w for of_f, of_w in signs), f.new_zeros(())))
        counts.append(of_class.sum())
    return torch.stack(sums), torch.stack(counts)


def importance_of(sums: Tensor, counts: Tensor) -> Tensor:
    """Return M (K_new,K_old,D), the means; ours: 1/K_old for a class that no pixel shows."""
    shown = counts[:, None, None]
    return torch.where(shown > 0, sums / shown.clamp(min=1), 1 / sums.shape[1])


def tune(
    parameters: Iterable[Tensor],
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    looks: Looks,
    num_epochs: int,
    lr: float,
) -> None:
    """Minimise a mean over all ranks and micro-batches by SGD, the learning rate falling to 0 (poly, power 0.9).

    loss: gives the sum over images and labels and the number that its mean runs over.
    """
    parameters = list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for done, micro_batches in looks.batches(num_epochs):
        count = torch.zeros((), dtype=torch.float64, device=looks.device)
        for images, labels in micro_batches:
            total, number = loss(images, labels)
            total.backward()
            count += number
        count = looks.sum(count).clamp(min=1)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad = (looks.sum(parameter.grad) / count).to(parameter.dtype)
        optimizer.param_groups[0]["lr"] = lr * (1 - done) ** 0.9
        optimizer.step()
        optimizer.zero_grad()
