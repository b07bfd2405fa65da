"""Cross-entropy and output distillation over one softmax, piece by piece, with their closed-form gradient.

Both ask for a target t of every pixel's softmax: Σ_k t_k · (log Σ_j exp z_j − z_k), whose gradient is
softmax(z) · Σ_k t_k − t. Between forward and backward no tensor of the logits' size is kept, and the gradient is
the only one that is made; the plain forms of `torch.nn.functional` stand in the tests.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.reduction import at_least_float32, pixel_chunks


@torch.compiler.disable  # a compiler would unroll the loop over pieces
def softmax_terms(
    logits: Tensor,
    *,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    ignore_index: int = 255,
    old_logits: Tensor | None = None,
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
    if targets is not None:
        is_counted = targets != ignore_index
        factors = is_counted.to(torch.promote_types(logits.dtype, torch.float32))
        weights = factors if weights is None else factors * weights
        targets = torch.where(is_counted, targets, 0)
    if old_logits is None or old_logits.shape[1] == 0:
        old_logits = heirs = None
    maps = [None if x is None else x.flatten(1)[:, None] for x in (targets, weights, heirs)]
    old_logits = None if old_logits is None else old_logits.detach().flatten(2)
    cross_entropy, distillation = _SoftmaxTerms.apply(logits.flatten(2), *maps, old_logits)
    return cross_entropy, distillation


class _SoftmaxTerms(torch.autograd.Function):
    """`softmax_terms` on (B,K,P) logits and (B,1,P) maps; ignored pixels have any target and a weight of 0."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor | None,
        weights: Tensor | None,
        heirs: Tensor | None,
        old_logits: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        zeros = at_least_float32(logits[:, :1]).new_zeros(logits.shape[0], 1, logits.shape[2])
        cross_entropies, distillations = zeros, zeros.clone()
        peaks, masses, old_peaks, old_masses = (torch.empty_like(zeros) for _ in range(4))
        for pixels in pixel_chunks(logits):
            # Shifted by the peak, as log-softmax is: large logits lose no digits.
            peak = logits[..., pixels].amax(dim=1, keepdim=True)
            centred = at_least_float32(logits[..., pixels]) - peak
            mass = centred.exp().sum(dim=1, keepdim=True)
            peaks[..., pixels], masses[..., pixels] = peak, mass
            if targets is not None:
                negative_log = mass.log() - centred.gather(1, targets[..., pixels])
                cross_entropies[..., pixels] = weights[..., pixels] * negative_log
            if old_logits is not None:
                old_peak = old_logits[..., pixels].amax(dim=1, keepdim=True)
                old = (old_logits[..., pixels].to(mass.dtype) - old_peak).exp_()
                old_mass = old.sum(dim=1, keepdim=True)
                old_peaks[..., pixels], old_masses[..., pixels] = old_peak, old_mass
                expected = old[:, :1] * centred.gather(1, heirs[..., pixels])
                kept = centred[:, 1 : old.shape[1]].mul_(old[:, 1:])
                expected += kept.sum(dim=1, keepdim=True)
                distillations[..., pixels] = mass.log() - expected / old_mass
        ctx.save_for_backward(
            logits, targets, weights, heirs, old_logits, peaks, masses, old_peaks, old_masses
        )
        return cross_entropies.sum(), distillations.sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, cross_entropy_scale: Tensor, distillation_scale: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, targets, weights, heirs, old_logits, peaks, masses, old_peaks, old_masses = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for pixels in pixel_chunks(logits):
            piece = gradient[..., pixels]
            # Half precision needs a wider place to add up in.
            exact = piece if gradient.dtype == masses.dtype else piece.to(masses.dtype)
            torch.sub(logits[..., pixels], peaks[..., pixels], out=exact).exp_()
            labelled = None if targets is None else cross_entropy_scale * weights[..., pixels]
            total = torch.zeros_like(masses[..., pixels]) if labelled is None else labelled
            if old_logits is not None:
                total = total + distillation_scale
            exact *= total / masses[..., pixels]
            if old_logits is not None:
                old = old_logits[..., pixels].to(masses.dtype).sub(old_peaks[..., pixels]).exp_()
                old *= distillation_scale / old_masses[..., pixels]
                exact[:, 1 : old.shape[1]].sub_(old[:, 1:])
                exact.scatter_add_(1, heirs[..., pixels], -old[:, :1])
            if labelled is not None:
                exact.scatter_add_(1, targets[..., pixels], -labelled)
            if exact is not piece:
                piece.copy_(exact)
        return gradient, None, None, None, None
