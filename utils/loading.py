"""Reading ahead: PyTorch's DataLoader, with workers that leave signals to the process that they read for."""

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.signals import held_back, leave_signals_to_parent

T_co = TypeVar("T_co", covariant=True)


class ReadAhead(DataLoader[T_co]):
    """A DataLoader; takes its arguments but `worker_init_fn`.

    A signal to all processes of a job leaves its workers at work, so that the run can save what they read for. They
    end with their parent.
    """

    def __init__(self, dataset: Dataset[T_co], **how: Any) -> None:
        super().__init__(dataset, worker_init_fn=leave_signals_to_parent, **how)

    def __iter__(self) -> Any:
        """Start the workers."""
        with held_back():
            return super().__iter__()


def collate_channels_last(samples: Sequence[tuple[Tensor, Any, Any]]) -> list[Any]:
    """Batch samples as `default_collate` does, images (C,H,W) as (B,C,H,W) in channels_last memory.

    Images that lie so already are copied as they are, by the worker that read them.
    """
    images, *others = default_collate([(image.permute(1, 2, 0), *rest) for image, *rest in samples])
    return [images.permute(0, 3, 1, 2), *others]
