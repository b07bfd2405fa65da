"""trainer/sampling.py: the order in which a step's images come, the same whatever ranks and micro-batches."""

from typing import Any

import numpy as np
import pytest

from trainer.sampling import TrainSampler


def sampler(num_images: int = 23, **changes: Any) -> TrainSampler:
    options: dict[str, Any] = {"batch_size": 8, "num_epochs": 3, "seed": 1, "step": 2, **changes}
    return TrainSampler(num_images, **options)


def global_batches(ranks: int, accumulate: int, num_images: int = 23) -> list[list[tuple[int, int]]]:
    """The batches of a run on `ranks` ranks, their shares one after the other."""
    shares = [
        list(sampler(num_images, rank=rank, world_size=ranks, accumulate=accumulate)) for rank in range(ranks)
    ]
    num_iterations = len(shares[0]) // accumulate
    return [
        [key for share in shares for micro in share[i * accumulate : (i + 1) * accumulate] for key in micro]
        for i in range(num_iterations)
    ]


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 8), (4, 2)])
@pytest.mark.parametrize("num_images", [23, 5])
def test_a_batch_holds_the_same_images_however_it_is_cut(
    ranks: int, accumulate: int, num_images: int
) -> None:
    assert global_batches(ranks, accumulate, num_images) == global_batches(1, 1, num_images)


def test_micro_batches_have_equal_sizes_and_the_length_counts_them() -> None:
    batches = list(sampler(rank=1, world_size=2, accumulate=2))
    assert {len(batch) for batch in batches} == {2}
    assert len(batches) == len(sampler(rank=1, world_size=2, accumulate=2)) == 3 * 2 * 2
    assert sampler().iterations_per_epoch == 2
    assert sampler().num_iterations == 6


def test_an_epoch_is_a_permutation_and_another_one_each_time() -> None:
    epochs: list[list[int]] = [[], [], []]
    for batch in sampler(num_images=24):
        for epoch, index in batch:
            epochs[epoch].append(index)
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_remainder_of_an_epoch_is_dropped() -> None:
    first = [index for batch in sampler() for epoch, index in batch if epoch == 0]
    assert len(first) == len(set(first)) == 16


@pytest.mark.parametrize("num_images", [1, 3, 5, 7])
def test_fewer_images_than_a_batch_are_repeated_as_evenly_as_possible(num_images: int) -> None:
    batches = list(sampler(num_images))
    assert len(batches) == 3
    for epoch, batch in enumerate(batches):
        counts = np.bincount([index for _, index in batch], minlength=num_images)
        assert len(set(batch)) == 8, "repeated images are augmented anew"
        assert {key_epoch % 3 for key_epoch, _ in batch} == {epoch}
        assert counts.sum() == 8
        assert counts.max() - counts.min() <= 1


def test_repetitions_share_no_key_with_any_epoch_of_the_step() -> None:
    keys = [key for batch in sampler(num_images=3) for key in batch]
    assert len(set(keys)) == len(keys) == 24
    assert [epoch for epoch, _ in keys[:8]] == [0, 0, 0, 3, 3, 3, 6, 6]


def test_the_order_depends_on_seed_and_step() -> None:
    assert list(sampler()) == list(sampler())
    assert list(sampler(seed=2)) != list(sampler())
    assert list(sampler(step=1)) != list(sampler())


def test_images_of_rare_classes_are_repeated_and_augmented_anew_each_time() -> None:
    repeats = [1, 3, 1, 2, 1]
    batches = list(sampler(num_images=5, batch_size=8, num_epochs=2, repeats=repeats))
    assert len(batches) == 2
    for epoch, batch in enumerate(batches):
        assert sorted(index for _, index in batch) == [0, 1, 1, 1, 2, 3, 3, 4]
        assert sorted(key % 2 for key, _ in batch) == [epoch] * 8
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)
    # Too few for a batch, although repeated: again from the start, and anew.
    (batch,) = sampler(num_images=2, batch_size=8, num_epochs=1, repeats=[2, 1])
    assert sorted(index for _, index in batch).count(0) >= 4
    assert len(set(batch)) == 8


def test_without_repeats_the_order_is_that_of_before() -> None:
    assert list(sampler(repeats=[1] * 23)) == list(sampler())
    assert list(sampler(num_images=3, repeats=[1] * 3)) == list(sampler(num_images=3))
