"""The order in which a step's images are seen: by every rank its share of each batch."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from datasets.incremental import make_generator


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """One rank's micro-batches of (epoch, index) over all epochs of a step.

    Every epoch is a permutation from (seed, step, epoch), cut into global batches, the remainder dropped; a
    step with fewer images than a batch repeats them to fill one. `repeats` says how often an epoch shows each image,
    None once; every time it is augmented anew. A global batch is cut into ranks, a rank's
    share into micro-batches: together they hold the same images whatever the cut.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        num_epochs: int,
        *,
        seed: int,
        step: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        repeats: Sequence[int] | None = None,
    ) -> None:
        assert batch_size % (world_size * accumulate) == 0
        counts = [1] * num_images if repeats is None else repeats
        self.places = [(time, index) for index, count in enumerate(counts) for time in range(count)]
        """What an epoch shows: which time, and which image."""
        self.most_repeats = max(counts, default=1)
        self.batch_size = batch_size
        self.num_epochs = num_epochs
        self.seed = seed
        self.step = step
        self.rank = rank
        self.rank_batch_size = batch_size // world_size
        self.accumulate = accumulate
        self.num_skipped = 0
        """Iterations at the start of the step that a resumed run has behind it."""

    @property
    def iterations_per_epoch(self) -> int:
        """Optimiser updates in one pass over the images."""
        return max(1, len(self.places) // self.batch_size)

    @property
    def num_iterations(self) -> int:
        """Optimiser updates in the step."""
        return self.num_epochs * self.iterations_per_epoch

    def __len__(self) -> int:
        return (self.num_iterations - self.num_skipped) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        micro = self.rank_batch_size // self.accumulate
        for epoch in range(self.num_skipped // self.iterations_per_epoch, self.num_epochs):
            generator = make_generator(self.seed, self.step, epoch)
            permutation = torch.randperm(len(self.places), generator=generator).tolist()
            places = [self.places[place] for place in permutation]
            # Epochs that no other pass has: repeated images are augmented anew.
            order = [(epoch + time * self.num_epochs, index) for time, index in places]
            repetition = 0
            while len(order) < self.batch_size:
                repetition += self.most_repeats
                order += [(epoch + (repetition + time) * self.num_epochs, index) for time, index in places]
            first_iteration = max(0, self.num_skipped - epoch * self.iterations_per_epoch)
            for iteration in range(first_iteration, self.iterations_per_epoch):
                first = iteration * self.batch_size + self.rank * self.rank_batch_size
                for start in range(first, first + self.rank_batch_size, micro):
                    yield order[start : start + micro]
