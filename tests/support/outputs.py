"""What models might say of a batch, and a method's terms of it."""

from typing import Any, cast

import torch
from torch import Tensor

from methods import Method, Output, means
from models import SegOutput

NUM_OLD, NUM_NEW = 3, 2


def random_output(num_classes: int, seed: int) -> SegOutput:
    """What a model might return for 2 images of 8 x 8 on a grid of 4 x 4 with 6 features."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (2 * torch.randn(shape, generator=generator)).requires_grad_()

    return SegOutput(
        normal(2, num_classes, 8, 8),
        normal(2, num_classes, 4, 4),
        normal(2, 6, 4, 4),
        normal(num_classes, 6),
        None,
        backbone=normal(2, 7, 2, 2),
    )


def random_labels(seed: int = 0) -> Tensor:
    """Labels (2,8,8) of a step: background, new classes and 255."""
    choices = torch.tensor([0, 0, 0, 3, 4, 255])
    return choices[torch.randint(0, 6, (2, 8, 8), generator=torch.Generator().manual_seed(seed))]


OUTPUT, OLD, LABELS = random_output(NUM_OLD + NUM_NEW, 1), random_output(NUM_OLD, 2), random_labels()


def make_method(kind: type[Method], num_old: int = NUM_OLD, num_new: int = NUM_NEW, **options: Any) -> Method:
    """A method in an incremental step with options of its own, all others at their defaults."""
    return kind(kind.Options(**options), num_old, num_new)


def terms_of(
    method: Method, labels: Tensor = LABELS, output: SegOutput = OUTPUT, old: SegOutput | None = OLD
) -> dict[str, Tensor]:
    """The weighted terms of one batch that is the whole batch."""
    seen, known = cast(Output, output), cast(Output, old)
    targets = method.targets(labels, known)
    return means(method.terms(seen, known, targets), targets.counts)


def part_of(output: SegOutput, index: int) -> SegOutput:
    """What belongs to one image of an output."""
    one = slice(index, index + 1)
    assert output.backbone is not None
    output = output._replace(backbone=output.backbone[one])
    logits = output.logits[one]
    return output._replace(
        pixel_logits=logits, grid_logits=output.grid_logits[one], features=output.features[one]
    )


def slow_cross_entropy(kind: str, labels: Tensor, num_old: int = NUM_OLD) -> Tensor:
    """Cross-entropy (B,H,W) of every pixel of OUTPUT in float64, class by class; 0 where the label is 255.

    kind: 'softmax'; 'unbiased', a softmax whose background may be any old class; 'sigmoids', or those of new classes.
    """
    z = OUTPUT.logits.detach().double()
    p, s = z.softmax(dim=1), z.sigmoid()
    result = torch.zeros(labels.shape, dtype=torch.float64)
    for b, y, x in (labels != 255).nonzero().tolist():
        label = int(labels[b, y, x])
        if kind == "softmax":
            result[b, y, x] = -p[b, label, y, x].log()
        elif kind == "unbiased":
            share = p[b, :num_old, y, x].sum() if label == 0 else p[b, label, y, x]
            result[b, y, x] = -share.log()
        else:
            asked = range(num_old if kind == "new sigmoids" else 0, z.shape[1])
            scores = [s[b, c, y, x] if c == label else 1 - s[b, c, y, x] for c in asked]
            result[b, y, x] = -torch.stack(scores).log().sum()
    return result


def slow_distillation(kind: str) -> Tensor:
    """Output distillation of OLD in float64: a mean over pixels, over the old channels a mean, of sigmoids a sum."""
    z, old = OUTPUT.logits.detach().double(), OLD.logits.detach().double()
    if kind == "softmax":
        return -(old.softmax(dim=1) * z[:, :NUM_OLD].log_softmax(dim=1)).mean()
    if kind == "unbiased":
        p = z.softmax(dim=1)
        joined = torch.cat([p[:, :1] + p[:, NUM_OLD:].sum(dim=1, keepdim=True), p[:, 1:NUM_OLD]], dim=1)
        return -(old.softmax(dim=1) * joined.log()).mean()
    q, s = old[:, 1:].sigmoid(), z[:, 1:NUM_OLD].sigmoid()
    return -(q * s.log() + (1 - q) * (1 - s).log()).sum(dim=1).mean()
