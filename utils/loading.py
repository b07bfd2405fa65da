"""Reading ahead: PyTorch's DataLoader, with workers that leave signals to the process that they read for."""

from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

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
