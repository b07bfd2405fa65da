"""How many floating-point operations an action takes, and how many a second the device is seen to do."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tools.bench.measure import Action, medians
from trainer.inference import AMP_DTYPES


def count_flops(action: Action) -> int:
    """Return the operations of the matrix products and convolutions of an action, two for a multiply and an add.

    What `train.compile` would compile runs as it is written.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())


def fastest_product(amp: str, device: torch.device, size: int) -> float:
    """Return the operations a second of a product of two square matrices of random numbers, in this precision.

    It stands for the most that the device can do. On GPUs, float32 is TF32 there as it is in cuDNN's convolutions.
    """
    a, b = (torch.randn(size, size, device=device).to(AMP_DTYPES[amp]) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        seconds = medians({"product": lambda: a @ b}, 9, device)["product"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / seconds
