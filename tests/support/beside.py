"""What a comparison with the authors' released code takes: pairs of values, outputs, methods, gradients."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from methods import METHODS, Method, Output, means
from models import SegOutput

Arrays = dict[str, Tensor]


class Pair(NamedTuple):
    """A quantity as we compute it, and as the released code does.

    through_single: it comes from a part of the released code that computes in float32 itself.
    """

    ours: Tensor
    theirs: Tensor
    through_single: bool = False

    @property
    def difference(self) -> float:
        """The largest difference of any entry, over the largest entry."""
        ours, theirs = self.ours.detach().double(), self.theirs.double()
        assert ours.shape == theirs.shape
        scale = float(theirs.abs().max())
        return float((ours - theirs).abs().max()) / (scale or 1.0)


Compared = dict[str, Pair]


def cast_inputs(arrays: Arrays, dtype: torch.dtype) -> Arrays:
    """Return the inputs in a precision, those that are floating point with a gradient, by their names without 'in_'."""
    inputs = {key[3:]: x for key, x in arrays.items() if key.startswith("in_")}
    return {
        key: x.to(dtype).requires_grad_() if x.is_floating_point() else x.long() for key, x in inputs.items()
    }


def gradients(scalar: Tensor, inputs: Arrays, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient with respect to each of the named inputs, zero where the scalar does not depend on it."""
    found = torch.autograd.grad(
        scalar, [inputs[name] for name in names], retain_graph=True, allow_unused=True
    )
    for name, gradient in zip(names, found, strict=True):
        yield name, torch.zeros_like(inputs[name]) if gradient is None else gradient


def output_of(logits: Tensor, **known: Any) -> SegOutput:
    """Return an output of these logits; what is not given is a single cell of zeros."""
    cell = logits.new_zeros(len(logits), 1, 1, 1)
    filled: dict[str, Any] = {
        "grid_logits": logits[:, :, :1, :1],
        "features": cell,
        "class_tokens": cell.flatten(1),
    }
    filled |= {"class_embeddings": None, "stages": (cell,)}
    return SegOutput(logits, **{**filled, **known})


def method_of(name: str, arrays: Arrays, **options: Any) -> Method:
    """Return a method in the step that a file is of."""
    kind = METHODS[name]
    return kind(kind.Options(**options), int(arrays["const_num_old"]), int(arrays["const_num_new"]))


def loss_terms(method: Method, labels: Tensor, output: SegOutput, old: SegOutput) -> dict[str, Tensor]:
    """Return the weighted terms of a batch."""
    targets = method.targets(labels, cast(Output, old))
    return means(method.terms(cast(Output, output), cast(Output, old), targets), targets.counts)


class LooksAt:
    """Looks at one batch."""

    device = torch.device("cpu")

    def __init__(self, labels: Tensor, old: SegOutput) -> None:
        self.seen = torch.zeros(len(labels), 3, 1, 1), labels, old

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, SegOutput]]:
        yield self.seen

    def sum(self, x: Tensor) -> Tensor:
        return x


def every_pixel(total: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Return (B,H,W), what a sum over labelled pixels is of each of them alone."""
    result = torch.zeros_like(logits[:, 0])
    for b, y, w in torch.cartesian_prod(*map(torch.arange, result.shape)).tolist():
        one = (slice(b, b + 1), ..., slice(y, y + 1), slice(w, w + 1))
        result[b, y, w] = total(logits[one].detach(), labels[one])
    return result
