"""Reading ahead: PyTorch's DataLoader, with workers that leave signals to the process that they read for."""

import sys
from collections.abc import Sequence
from types import TracebackType
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
        super().__init__(dataset, worker_init_fn=start_worker, **how)

    def __iter__(self) -> Any:
        """Start the workers."""
        with held_back():
            return super().__iter__()


def start_worker(_: int) -> None:
    """Leave signals to the process that the worker reads for; it may end while it fetches a batch."""
    leave_signals_to_parent()
    sys.excepthook = tell_unless_left


def tell_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, but for a lost connection: who was fetching a batch has ended, and says why.

    Errors of a data set do not come here: the loader raises them in that process.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def collate_channels_last(samples: Sequence[tuple[Tensor, Any, Any]]) -> list[Any]:
    """Batch samples as `default_collate` does, images (C,H,W) as (B,C,H,W) in channels_last memory.

    Images that lie so already are copied as they are, by the worker that read them.
    """
    images, *others = default_collate([(image.permute(1, 2, 0), *rest) for image, *rest in samples])
    return [images.permute(0, 3, 1, 2), *others]
