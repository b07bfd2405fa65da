"""Ridge regression from sums over cells: its solution over all steps needs none of their images (analytic learning).

The sums add up over batches, ranks and steps in any order, so solving after each step equals solving all steps at once
with the same labels (recursive least squares; for segmentation e.g. SegACIL, arXiv 2412.10834).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def with_constant(x: Tensor) -> Tensor:
    """Return x (N,F) in float64 with a column of ones at its end, (N,F+1): the constant of the regression."""
    return torch.cat([x.double(), x.new_ones(len(x), 1, dtype=torch.float64)], dim=1)


def class_grams(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return Σ x̃ x̃ᵀ over the cells of each class, (K,F+1,F+1) float64, x̃ being `with_constant` of a cell.

    x: (N,F), N cells; labels: (N,) int64, cells of other values than 0 to K - 1 are left out.
    """
    size = x.shape[1] + 1
    grams = torch.zeros(num_classes, size, size, dtype=torch.float64, device=x.device)
    add_to_grams(grams, x, labels)
    return grams


def add_to_grams(grams: Tensor, x: Tensor, labels: Tensor) -> None:
    """Add the cells to what `class_grams` has given, in place."""
    x = with_constant(x)
    for c in labels.unique().tolist():
        if 0 <= c < len(grams):
            cells = x[labels == c]
            grams[c].addmm_(cells.T, cells)


def balanced_sums(grams: Tensor, balance: float) -> tuple[Tensor, Tensor]:
    """Return Σ w x̃ x̃ᵀ (F+1,F+1) and Σ w x̃ yᵀ (F+1,K) over all cells, y being one-hot.

    A cell of class c weighs w_c = (mean count / count of c)^balance; counts are the last diagonal entries of `grams`
    (K,F+1,F+1), their mean is over classes with cells. balance: 0 counts every cell alike, 1 every class.
    """
    counts = grams[:, -1, -1]
    present = counts > 0
    mean = counts[present].mean() if present.any() else counts.sum()
    weights = torch.where(present, (mean / counts.clamp(min=1)) ** balance, 0.0)
    gram = torch.einsum("k,kij->ij", weights, grams)
    return gram, (weights[:, None] * grams[:, :, -1]).T.contiguous()


def standardisation(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (F,) of the features of the cells that a gram (F+1,F+1) sums."""
    count = gram[-1, -1].clamp(min=1)
    mean = gram[-1, :-1] / count
    variance = gram.diagonal()[:-1] / count - mean.square()
    # A feature that never moves says nothing, whatever it is divided by.
    return mean, variance.clamp(min=0).sqrt().clamp(min=1e-6 * (1 + mean.abs()))


def solve_ridge(
    gram: Tensor, targets: Tensor, mean: Tensor, deviation: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Return the weights (K,F) and constants (K,) that score raw features: (A + λI)⁻¹ B over standardised ones.

    gram: A, Σ w x̃ x̃ᵀ (F+1,F+1); targets: B, Σ w x̃ yᵀ (F+1,K), both of raw features, float64. mean, deviation: (F,), by
    which features are standardised. ridge: λ over the mean of A's diagonal.
    """
    # x̃ standardised is T x̃: sums of raw features become those of standardised ones without their cells.
    transform = torch.diag(torch.cat([1 / deviation, deviation.new_ones(1)]))
    transform[:-1, -1] = -mean / deviation
    standard = transform @ gram @ transform.T
    penalty = ridge * standard.diagonal().mean()
    raw = transform.T @ solve_sums(standard, transform @ targets, penalty)
    return raw[:-1].T.contiguous(), raw[-1].contiguous()


def expand(x: Tensor, expansion: Tensor) -> Tensor:
    """Return φ(x) = relu(W x), (N,E) float64, of cells x (N,D) and a matrix W (E,D) (SegACIL, arXiv 2412.10834)."""
    return (x.double() @ expansion.double().T).relu()


def add_cells(gram: Tensor, targets: Tensor, x: Tensor, labels: Tensor) -> None:
    """Add Σ x xᵀ to `gram` (F,F) and Σ x yᵀ to `targets` (F,K), float64, in place; y is one-hot.

    x: (N,F) float64; labels: (N,) int64, cells of other values than 0 to K - 1 are left out.
    """
    is_counted = (labels >= 0) & (labels < targets.shape[1])
    x, labels = x[is_counted], labels[is_counted]
    gram.addmm_(x.T, x)
    targets.addmm_(x.T, F.one_hot(labels, targets.shape[1]).to(x.dtype))


def solve_sums(gram: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """Return (A + γI)⁻¹ B (F,K): what minimises Σ ‖y − Wᵀx‖² + γ‖W‖² over the cells summed in A (F,F) and B (F,K)."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(targets, torch.linalg.cholesky(gram + penalty * identity))


def likelihood_slope(scores: Tensor, labels: Tensor, sharpness: float) -> Tensor:
    """Return first and second derivative by β of Σ -log softmax(β · scores) at the labels, (2,) float64.

    scores: (N,K); labels: (N,) int64 in 0..K-1; sharpness: β, the inverse of a temperature. Sums of parts add up.
    """
    scores = scores.double()
    shares = (sharpness * scores).softmax(dim=1)
    mean = (shares * scores).sum(dim=1)
    given = scores.gather(1, labels[:, None])[:, 0]
    variance = (shares * (scores - mean[:, None]).square()).sum(dim=1)
    return torch.stack([(mean - given).sum(), variance.sum()])


def fit_sharpness(slope: Callable[[float], Tensor], tolerance: float = 1e-6) -> float:
    """Return β > 0 that makes the labels most likely, by Newton's method: the likelihood is concave in β.

    slope: gives `likelihood_slope` over all cells. Where ever larger ones fit ever better (every cell is right), the
    search ends after 50 steps that each double β at most.
    """
    sharpness = 1.0
    for _ in range(50):
        first, second = slope(sharpness).tolist()
        step = -first / max(second, 1e-12)
        step = min(max(step, -sharpness / 2), sharpness)
        sharpness += step
        if abs(step) < tolerance * sharpness:
            break
    return sharpness
