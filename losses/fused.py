"""Faster forms of formulas that stand plainly in other files; a test holds each pair together.

Cross-entropy and output distillation share one softmax, piece by piece, with their closed-form gradient. Both ask for
a target t of every pixel's softmax: Σ_k t_k · (log Σ_j exp z_j − z_k), whose gradient is softmax(z) · Σ_k t_k − t.
Between forward and backward no tensor of the logits' size is kept, and the gradient is the only one that is made. The
plain forms are `torch.nn.functional.cross_entropy` and `losses.output_distillation.output_distillation`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.class_groups import class_groups
from losses.pieces import Geometry, LogitReader, Logits, arguments, open_logits, pixel_chunks
from losses.reduction import at_least_float32, split_labels


@torch.compiler.disable  # a compiler would unroll the loop over pieces
def softmax_terms(
    logits: Logits,
    *,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    ignore_index: int = 255,
    old_logits: Logits | None = None,
    heirs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sums over pixels of the cross-entropy and of the distillation of the old model's softmax.

    A term whose arguments are None is a zero connected to the logits. Sums are float32 at least and can be
    differentiated once.

    logits: (B,K,H,W).
    targets: (B,H,W) int64, classes or `ignore_index`; weights: (B,H,W), the pixels' factors, None for 1.
    old_logits: (B,K_old,H,W), K_old at most K; heirs: (B,H,W) int64, the class of which the old background's
    probability is expected. No gradient reaches them.
    """
    has_old = old_logits is not None and old_logits.shape[1] > 0
    maps = [None if x is None else x.flatten(1)[:, None] for x in (targets, weights, heirs)]
    cross_entropy, distillation = _SoftmaxTerms.apply(
        *arguments(logits), *arguments(old_logits if has_old else None), *maps, ignore_index
    )
    return cross_entropy, distillation


class _SoftmaxTerms(torch.autograd.Function):
    """`softmax_terms` on logits as `losses.pieces` passes them and (B,1,P) maps.

    A softmax is kept as its peak m = max z and its mass s = Σ exp(z − m), (B,1,P) each: as in log-softmax, logits far
    from 0 lose no digits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        geometry: Geometry | None,
        old_tensor: Tensor | None,
        old_geometry: Geometry | None,
        targets: Tensor | None,
        weights: Tensor | None,
        heirs: Tensor | None,
        ignore_index: int,
    ) -> tuple[Tensor, Tensor]:
        logits, old_logits = open_logits(tensor, geometry), open_logits(old_tensor, old_geometry)
        shape, dtype = (logits.shape[0], 1, logits.shape[2]), logits.dtype
        peaks, masses, old_peaks, old_masses = tensor.new_empty(4, *shape, dtype=dtype)
        cross_entropies, distillations = tensor.new_zeros(2, 1, dtype=dtype).unbind()
        for pixels, (centred, work) in pixel_chunks(2, logits, old_logits):
            peak, mass = peaks[..., pixels], masses[..., pixels]
            z = logits.read(pixels)
            torch.sub(z, _peak(z, out=peak), out=centred)
            torch.sum(torch.exp(centred, out=work), dim=1, keepdim=True, out=mass)
            log_mass = mass.log()
            if targets is not None:
                target, factor = _select(targets, weights, ignore_index, pixels, dtype)
                cross_entropies += (factor * (log_mass - centred.gather(1, target))).sum()
            if old_logits is not None:
                assert heirs is not None
                old = work[:, : old_logits.shape[1]]
                old_z, old_peak, old_mass = (
                    old_logits.read(pixels),
                    old_peaks[..., pixels],
                    old_masses[..., pixels],
                )
                torch.sub(old_z, _peak(old_z, out=old_peak), out=old).exp_()
                torch.sum(old, dim=1, keepdim=True, out=old_mass)
                expected = old[:, :1] * centred.gather(1, heirs[..., pixels])
                expected += old[:, 1:].mul_(centred[:, 1 : old.shape[1]]).sum(dim=1, keepdim=True)
                distillations += (log_mass - expected / old_mass).sum()
        ctx.options = geometry, old_geometry, ignore_index
        ctx.save_for_backward(
            tensor, old_tensor, targets, weights, heirs, peaks, masses, old_peaks, old_masses
        )
        return cross_entropies[0], distillations[0]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, cross_entropy_scale: Tensor, distillation_scale: Tensor
    ) -> tuple[Tensor | None, ...]:
        tensor, old_tensor, targets, weights, heirs, peaks, masses, old_peaks, old_masses = ctx.saved_tensors
        geometry, old_geometry, ignore_index = ctx.options
        logits, old_logits = open_logits(tensor, geometry), open_logits(old_tensor, old_geometry)
        for pixels, (work,) in pixel_chunks(1, logits, old_logits):
            piece = logits.gradient_of(pixels)
            torch.sub(logits.read(pixels), peaks[..., pixels], out=piece).exp_()
            total = 0 if old_logits is None else distillation_scale
            if targets is not None:
                target, factor = _select(targets, weights, ignore_index, pixels, work.dtype)
                factor = factor.mul_(cross_entropy_scale)
                total = total + factor
            piece.mul_(total / masses[..., pixels])
            if old_logits is not None:
                old = work[:, : old_logits.shape[1]]
                torch.sub(old_logits.read(pixels), old_peaks[..., pixels], out=old).exp_()
                old.mul_(-distillation_scale / old_masses[..., pixels])
                piece[:, 1 : old.shape[1]].add_(old[:, 1:])
                piece.scatter_add_(1, heirs[..., pixels], old[:, :1])
            if targets is not None:
                piece.scatter_add_(1, target, factor.neg_())
            logits.add(pixels, piece)
        return logits.gradient(), *[None] * 7


def _peak(z: Tensor, out: Tensor) -> Tensor:
    """The largest logit (B,1,n) of every pixel, written to `out`."""
    return out.copy_(z.amax(dim=1, keepdim=True))


def _select(
    targets: Tensor, weights: Tensor | None, ignore_index: int, pixels: slice, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Targets and factors (B,1,n) of some pixels; what is ignored has some class and a factor of 0."""
    target, is_counted = split_labels(targets[..., pixels], ignore_index)
    factor = is_counted.to(dtype) if weights is None else weights[..., pixels].to(dtype) * is_counted
    return target, factor


def unbiased_terms(
    logits: Logits, old_logits: Logits, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the sums of `losses.unbiased`: of its cross-entropy, and of its distillation.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient; labels: (B,H,W) int64.
    """
    num_old = old_logits.shape[1]
    groups = class_groups("softmax", logits, labels, num_old, ignore_index, old_logits)
    hidden = torch.logaddexp(groups.background, groups.old)  # what the labels call background
    everything = torch.logaddexp(hidden, groups.new)
    expected = torch.where(labels < num_old, hidden, groups.given)
    cross_entropy = (everything - expected).masked_fill(labels == ignore_index, 0).sum()
    unseen = torch.logaddexp(groups.background, groups.new)  # what the old model took for background
    distillation = everything - groups.old_background * unseen - groups.agreement
    return cross_entropy, distillation.sum()


def binary_terms(
    logits: Logits,
    labels: Tensor,
    ignore_index: int,
    weights: Tensor | None = None,
    first_class: int = 0,
    positive_weight: float = 1.0,
    old_logits: Logits | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sums of `losses.binary_cross_entropy` and of `losses.binary_distillation`, 0 without `old_logits`.

    Arguments are theirs; with `old_logits` (B,K_old,H,W), `first_class` is K_old.
    """
    groups = class_groups("sigmoid", logits, labels, max(first_class, 1), ignore_index, old_logits)
    is_labelled = labels != ignore_index
    is_shown = is_labelled & (labels >= first_class)
    asked = groups.new if first_class else F.softplus(groups.background) + groups.new
    own = groups.given.masked_fill(~is_shown, 0)
    per_pixel = (asked - own).masked_fill(~is_labelled, 0)
    if positive_weight != 1:
        per_pixel = per_pixel + (positive_weight - 1) * F.softplus(-own).masked_fill(~is_shown, 0)
    cross_entropy = (per_pixel if weights is None else weights * per_pixel).sum()
    return cross_entropy, (groups.old - groups.agreement).sum()


def logit_terms(
    logits: Logits, old_logits: Logits, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the sums of the cross-entropy over labelled pixels and of `losses.logit_distillation`.

    logits: (B,K,H,W); old_logits: (B,K_old,H,W), gets no gradient; labels: (B,H,W) int64.
    """
    groups = class_groups("softmax", logits, labels, old_logits.shape[1], ignore_index, old_logits)
    known = torch.logaddexp(groups.background, groups.old)
    everything = torch.logaddexp(known, groups.new)
    cross_entropy = (everything - groups.given).masked_fill(labels == ignore_index, 0).sum()
    distillation = known - groups.old_background * groups.background - groups.agreement
    return cross_entropy, distillation.sum()


@torch.compiler.disable  # a compiler would unroll the loop over pieces
def select_pseudo_labels_in_pieces(
    labels: Tensor, old_logits: Logits, threshold: float, ignore_index: int, ignore_unsure: bool = True
) -> Tensor:
    """Return what `losses.pseudo_label.select_pseudo_labels` returns, without a tensor of the logits' size.

    labels: (B,H,W) int64; old_logits: (B,K_old,H,W) floating point. Returns (B,H,W) int64 without gradient.
    """
    pseudo_labels, logits = labels.flatten(1).clone(), open_logits(*arguments(old_logits.detach()))
    rank = _rank(logits)
    for pixels, (odds,) in pixel_chunks(1, logits):
        # The old model's probabilities, but for their common divisor.
        z = logits.read(pixels)
        torch.sub(z, at_least_float32(z.amax(dim=1, keepdim=True)), out=odds).exp_()
        background, foreground = odds[:, 0].clone(), odds[:, 1:].sum(dim=1)
        is_sure = 1 / (background + foreground) >= threshold
        old_class = _first_largest(odds.eq_(1), rank)  # the likeliest class has odds of exactly 1
        is_background = pseudo_labels[:, pixels] == 0
        is_confident = is_background & (old_class != 0) & is_sure
        replaced = torch.where(is_confident, old_class, pseudo_labels[:, pixels])
        if ignore_unsure:
            is_unsure = is_background & ~is_confident & (background < foreground)
            replaced.masked_fill_(is_unsure, ignore_index)
        pseudo_labels[:, pixels] = replaced
    return pseudo_labels.view(labels.shape)


@torch.compiler.disable  # a compiler would unroll the loop over pieces
def entropy_pseudo_labels_in_pieces(
    labels: Tensor, old_logits: Logits, thresholds: Tensor, ignore_index: int
) -> Tensor:
    """Return what `losses.entropy_pseudo_label.entropy_pseudo_labels` returns, without a tensor of the logits' size.

    labels: (B,H,W) int64; old_logits: (B,K_old,H,W); thresholds: (K_old,). Returns (B,H,W) int64 without gradient.
    """
    pseudo_labels, logits = labels.flatten(1).clone(), open_logits(*arguments(old_logits.detach()))
    rank = _rank(logits)
    for pixels, (centred, odds) in pixel_chunks(2, logits):
        entropy = _entropy(logits.read(pixels), centred, odds)
        old_class = _first_largest(centred.eq_(0), rank)
        is_sure = entropy < thresholds[old_class]
        given = pseudo_labels[:, pixels]
        pseudo_labels[:, pixels] = torch.where(
            given == 0, torch.where(is_sure, old_class, ignore_index), given
        )
    return pseudo_labels.view(labels.shape)


@torch.compiler.disable  # a compiler would unroll the loop over pieces
def normalised_entropy_in_pieces(logits: Logits) -> Tensor:
    """Return what `losses.entropy_pseudo_label.normalised_entropy` returns, without a tensor of the logits' size.

    logits: (B,K,H,W), K at least 2. Returns (B,H,W), float32 at least, without gradient.
    """
    batch, _, *size = logits.shape
    reader = open_logits(*arguments(logits.detach()))
    entropy = torch.empty(batch, reader.shape[2], device=reader.device, dtype=reader.dtype)
    for pixels, (centred, odds) in pixel_chunks(2, reader):
        entropy[:, pixels] = _entropy(reader.read(pixels), centred, odds)
    return entropy.view(batch, *size)


@torch.compiler.disable  # a compiler would unroll the loop over pieces
def sigmoid_pseudo_labels_in_pieces(
    labels: Tensor, old_logits: Logits, threshold: float, num_old: int | None = None
) -> Tensor:
    """Return what `losses.binary_cross_entropy.sigmoid_pseudo_labels` returns, without a tensor of the logits' size.

    labels: (B,H,W) int64; old_logits: (B,K_old,H,W), with further channels; num_old: K_old, None for all of them.
    Returns (B,H,W) int64 without gradient.
    """
    num_old = old_logits.shape[1] if num_old is None else num_old
    pseudo_labels, logits = labels.flatten(1).clone(), open_logits(*arguments(old_logits.detach()))
    rank = _rank(logits)
    for pixels, (is_largest,) in pixel_chunks(1, logits):
        # Sigmoids, whose largest is that of the largest logit, take several times as long.
        z = logits.read(pixels)
        largest = z.amax(dim=1, keepdim=True)
        torch.eq(z, largest, out=is_largest)
        old_class = _first_largest(is_largest, rank)
        given, score = pseudo_labels[:, pixels], at_least_float32(largest[:, 0]).sigmoid()
        is_taken = (given == 0) & (old_class != 0) & (old_class < num_old) & (score >= threshold)
        pseudo_labels[:, pixels] = torch.where(is_taken, old_class, given)
    return pseudo_labels.view(labels.shape)


def _entropy(z: Tensor, centred: Tensor, odds: Tensor) -> Tensor:
    """Entropy (B,n) of softmax(z) over its largest value; z: (B,K,n). Leaves z less its largest in `centred`."""
    torch.sub(z, z.amax(dim=1, keepdim=True), out=centred)
    mass = torch.exp(centred, out=odds).sum(dim=1)
    entropy: Tensor = (mass.log() - odds.mul_(centred).sum(dim=1) / mass) / math.log(z.shape[1])
    return entropy


def _rank(logits: LogitReader) -> Tensor:
    """Numbers (K,1) that decrease, so that the largest of equals is the first class; exact in floating point."""
    return torch.arange(logits.shape[1], 0, -1, device=logits.device, dtype=torch.float32)[:, None]


def _first_largest(is_largest: Tensor, rank: Tensor) -> Tensor:
    """The first class (B,n) int64 of those that are marked with 1 in (B,K,n), which is overwritten.

    PyTorch's own argmax takes several times as long on a CPU.
    """
    return len(rank) - is_largest.mul_(rank).amax(dim=1).long()
