"""What follows where an image or its mask cannot be read: an error, or it is left out, counted and named."""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from utils.errors import DataError
from utils.errors import explain as explain_error

MAX_NAMED = 10


class TooManySkippedError(DataError):
    """More images cannot be read than data.max_skipped allows; raised in all ranks alike."""

    met_by_all = True


def explain(error: Exception) -> str:
    """One line that names the file, for what reading an image or a mask has raised."""
    return " ".join(explain_error(error).split())


class Unreadable:
    """The problems met among the images of a split or step, one line an image, and when they end the run.

    on_error: 'raise' ends it with the first; 'skip' once their share of `num_images` exceeds `max_skipped`.
    where: what the images belong to, for the messages.
    """

    def __init__(self, on_error: str, max_skipped: float, num_images: int, where: str) -> None:
        self.on_error = on_error
        self.max_skipped = max_skipped
        self.num_images = num_images
        self.where = where
        self.problems: dict[str, None] = {}  # a set that keeps its order

    @property
    def is_too_many(self) -> bool:
        """Whether the policy ends the run; where no image can be read, every policy does."""
        if self.on_error == "raise" or len(self.problems) >= self.num_images:
            return bool(self.problems)
        return len(self.problems) / self.num_images > self.max_skipped

    def add(self, problems: Iterable[str]) -> None:
        """Keep problems, one line each; those known already count once."""
        self.problems |= dict.fromkeys(problems)

    def meet(self, problems: Iterable[str]) -> None:
        """Keep what could not be read of samples, '' where nothing is wrong.

        Raises DataError in the rank that meets a problem, unless problems are skipped.
        """
        self.add(line for text in problems for line in text.splitlines())
        if self.on_error == "raise":
            self.check()

    def watch(self, batches: Iterable[tuple[Tensor, Tensor, list[str]]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of batches, and `meet` what could not be read of them."""
        for images, labels, problems in batches:
            self.meet(problems)
            yield images, labels

    def agree(self, gather: Callable[[list[str]], list[list[str]]]) -> None:
        """Bring the problems of all processes together; raises as `check` does, in all of them.

        gather: gives every process the lists of all, its own among them (`Worker.gather`).
        """
        self.problems = dict.fromkeys(sorted(set().union(*gather(list(self.problems)))))
        self.check()

    def check(self) -> None:
        """Raise DataError (TooManySkippedError where problems are skipped) if the policy ends the run."""
        if not self.is_too_many:
            return
        count = f"the first {MAX_NAMED}" if len(self.problems) >= MAX_NAMED else str(len(self.problems))
        lines = list(self.problems)[:MAX_NAMED]
        if self.on_error == "raise":
            remedy = "mend them, or leave them out with data.on_error=skip"
            raise DataError("\n".join([f"{self.where}: wrong files ({count}); {remedy}:", *lines]))
        remedy = "mend them, or raise data.max_skipped"
        if len(self.problems) >= self.num_images:
            remedy = "none is left; mend them"
        raise TooManySkippedError("\n".join([f"{self.where}: {self._count()}; {remedy}:", *lines]))

    def state_dict(self) -> list[str]:
        """The problems so far."""
        return list(self.problems)

    def load_state_dict(self, state: list[str]) -> None:
        """Take up where `state_dict` left off."""
        self.problems = dict.fromkeys(state)

    def describe(self) -> str:
        """Count and names of the images that were left out."""
        return "\n  ".join([f"{self.where}: {self._count()} and are left out:", *self.problems])

    def _count(self) -> str:
        share = len(self.problems) / self.num_images
        return (
            f"{len(self.problems)} of {self.num_images} images cannot be read "
            f"({100 * share:.3g} %; data.max_skipped allows {100 * self.max_skipped:.3g} %)"
        )
