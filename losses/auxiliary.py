"""What the auxiliary classifier learns: no pixel so far shows a class to come (DKD, arXiv 2210.05941)."""

import torch.nn.functional as F
from torch import Tensor

from losses.reduction import at_least_float32


def auxiliary_loss(auxiliary_logits: Tensor) -> tuple[Tensor, int]:
    """Return the sum over cells of −log(1 − σ(z)), and their number (B·h·w).

    What a step sees, whatever it shows, is a negative of the classes to come, which start as copies of this classifier
    and so know negatives of steps whose images are gone. Ours: every cell of the feature grid counts, ignored
    pixels too, and the features learn nothing from it (`GrowingClassifier.auxiliary_logits`), so that a base step is
    the same with and without it.

    auxiliary_logits: (B,1,h,w).
    """
    return F.softplus(at_least_float32(auxiliary_logits)).sum(), auxiliary_logits.numel()
