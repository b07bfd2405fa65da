"""What a pixel's logits say of groups of classes: all that the losses of MiB, LwF, SSUL and DKD need of them.

Their sums are formulas of these maps (`losses.fused`), which are as small as one class. The logits are read piece by
piece, in the cache: between forward and backward no tensor of their size is kept, and their gradient is the only one
that is made.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.pieces import Geometry, Logits, arguments, open_logits, pixel_chunks
from losses.reduction import split_labels


class ClassGroups(NamedTuple):
    """Maps (B,H,W), float32 at least, of logits z; the groups are background, the old classes but it, and the new ones.

    background: z of class 0. old, new: of a softmax log Σ exp z over the group (-inf where it is empty), of sigmoids
    Σ log(1 + exp z). given: z of the label, 0 where there is none. agreement: Σ p°·z over the group of old classes, p°
    being the old model's probabilities. old_background: p° of class 0; it gets no gradient.

    Of a softmax, every z here is that beyond the pixel's largest one: what is asked of a softmax does not change where
    all logits move alike, and logits far from 0 lose no digits.
    """

    background: Tensor
    old: Tensor
    new: Tensor
    given: Tensor
    agreement: Tensor
    old_background: Tensor


@torch.compiler.disable  # a compiler would unroll the loop over pieces
def class_groups(
    scores: str,
    logits: Logits,
    labels: Tensor,
    num_old: int,
    ignore_index: int,
    old_logits: Logits | None = None,
) -> ClassGroups:
    """Return the maps of logits that are read as `scores`: 'softmax' or 'sigmoid'. They can be differentiated once.

    logits: (B,K,H,W); labels: (B,H,W) int64, classes or `ignore_index`; num_old: K_old, background among them;
    old_logits: (B,K_old,H,W), gets no gradient. Without it, the last two maps are 0, and of sigmoids also that of the
    old classes.
    """
    maps, old_background = _ClassGroups.apply(
        *arguments(logits),
        *arguments(old_logits),
        labels.flatten(1)[:, None],
        max(num_old, 1),
        ignore_index,
        scores == "softmax",
    )
    return ClassGroups(*(x.view(labels.shape) for x in (*maps.unbind(), old_background)))


class _ClassGroups(torch.autograd.Function):
    """`class_groups` on logits as `losses.pieces` passes them and (B,1,P) labels.

    Returns the maps (5,B,1,P) and the old background (B,1,P).
    """

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        geometry: Geometry | None,
        old_tensor: Tensor | None,
        old_geometry: Geometry | None,
        labels: Tensor,
        first_new: int,
        ignore_index: int,
        is_softmax: bool,
    ) -> tuple[Tensor, Tensor]:
        logits, old_logits = open_logits(tensor, geometry), open_logits(old_tensor, old_geometry)
        shape, dtype = labels.shape, logits.dtype
        maps = tensor.new_zeros(5, *shape, dtype=dtype)
        # Of a softmax: the largest logit; that of the old model, and its Σ exp(z − largest).
        peaks, old_peaks, old_masses, old_background = tensor.new_zeros(4, *shape, dtype=dtype)
        slices = slice(1, first_new), slice(first_new, logits.shape[1])
        for pixels, (work, more) in pixel_chunks(2, logits, old_logits):
            z, peak = logits.read(pixels), peaks[..., pixels]
            background, *groups, given, agreement = maps[..., pixels].unbind()
            if is_softmax:
                peak.copy_(z.amax(dim=1, keepdim=True))
            target, is_labelled = split_labels(labels[..., pixels], ignore_index)
            torch.sub(z.gather(1, target), peak, out=given).mul_(is_labelled)
            torch.sub(z[:, :1], peak, out=background)
            for group, channels in zip(groups, slices, strict=True):
                if is_softmax:
                    _logsumexp(z[:, channels], peak, work[:, channels], out=group)
                elif old_logits is not None or channels is slices[1]:
                    torch.sum(F.softplus(z[:, channels].to(dtype)), dim=1, keepdim=True, out=group)
            if old_logits is not None:
                old, old_peak, old_mass = (
                    old_logits.read(pixels),
                    old_peaks[..., pixels],
                    old_masses[..., pixels],
                )
                odds = work[:, : old.shape[1]]
                if is_softmax:
                    torch.sub(old, old_peak.copy_(old.amax(dim=1, keepdim=True)), out=odds).exp_()
                    torch.sum(odds, dim=1, keepdim=True, out=old_mass)
                else:
                    odds.copy_(old).sigmoid_()
                    old_mass.fill_(1)
                torch.div(odds[:, :1], old_mass, out=old_background[..., pixels])
                beyond = torch.sub(z[:, 1 : old.shape[1]], peak, out=more[:, 1 : old.shape[1]])
                torch.sum(beyond.mul_(odds[:, 1:]), dim=1, keepdim=True, out=agreement).div_(old_mass)
        ctx.options = geometry, old_geometry, first_new, ignore_index, is_softmax
        ctx.save_for_backward(tensor, old_tensor, labels, maps[1:3], peaks, old_peaks, old_masses)
        ctx.mark_non_differentiable(old_background)
        return maps, old_background

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        tensor, old_tensor, labels, sums, peaks, old_peaks, old_masses = ctx.saved_tensors
        geometry, old_geometry, first_new, ignore_index, is_softmax = ctx.options
        logits, old_logits = open_logits(tensor, geometry), open_logits(old_tensor, old_geometry)
        slices = slice(1, first_new), slice(first_new, logits.shape[1])
        for pixels, (work,) in pixel_chunks(1, logits, old_logits):
            z, peak = logits.read(pixels), peaks[..., pixels]
            background, *groups, given, agreement = gradients[..., pixels].unbind()
            piece = logits.gradient_of(pixels)
            piece[:, :1] = background
            for group, total, channels in zip(groups, sums[..., pixels], slices, strict=True):
                share = piece[:, channels]
                if is_softmax:
                    torch.sub(z[:, channels], peak + total, out=share).exp_().mul_(group)
                elif old_logits is not None or channels is slices[1]:
                    share.copy_(z[:, channels]).sigmoid_().mul_(group)
                else:
                    share.zero_()
            if old_logits is not None:
                old = old_logits.read(pixels)
                odds = work[:, : old.shape[1]]
                if is_softmax:
                    torch.sub(old, old_peaks[..., pixels], out=odds).exp_()
                else:
                    odds.copy_(old).sigmoid_()
                piece[:, 1 : old.shape[1]].add_(odds.mul_(agreement / old_masses[..., pixels])[:, 1:])
            target, is_labelled = split_labels(labels[..., pixels], ignore_index)
            piece.scatter_add_(1, target, given * is_labelled)
            logits.add(pixels, piece)
        return logits.gradient(), *[None] * 7


def _logsumexp(z: Tensor, peak: Tensor, work: Tensor, out: Tensor) -> None:
    """Write log Σ exp(z − peak) (B,1,n) over the channels of z (B,k,n) to `out`, whatever the peak; -inf for none."""
    if z.shape[1] == 0:
        out.fill_(-torch.inf)
        return
    largest = z.amax(dim=1, keepdim=True).to(out.dtype)
    torch.sum(torch.sub(z, largest, out=work).exp_(), dim=1, keepdim=True, out=out)
    out.log_().add_(largest - peak)
