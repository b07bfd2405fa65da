"""Old classes are replayed as features, drawn from statistics that every step leaves (STAR, NeurIPS 2023).

For methods whose model scores features that no image of the batch gave (`SegmentationModel.classify`). What is kept is
in the method's `state`: `counts` (K,), the cells of every class, and K rows of `ClassStatistics`, background first.
"""

import torch
from torch import Tensor

from losses.prototypes import ClassStatistics, class_statistics, class_sums, draw_features, labels_on_grid
from methods.base import Looks
from models import SegmentationModel

OVERLAP_LOSS = 0.01
"""Share of the background's cells that a new class is expected to take, in setting overlap."""


def measure_classes(
    state: dict[str, Tensor],
    looks: Looks,
    model: SegmentationModel,
    num_old: int,
    num_new: int,
    of_base_step: bool = False,
) -> None:
    """Add the step's classes to what is kept, from one pass over its images; background counts in the base step only.

    of_base_step: step 0's, looked at by the old model.
    """
    sums = torch.zeros(num_old + num_new, 3 + 2 * model.options.channels, device=looks.device).double()
    for _, labels, output in looks.seen_by(None if of_base_step else model, of_base_step):
        cells = labels_on_grid(labels, output.features.shape[2:])
        sums += class_sums(output.features, cells, num_old + num_new)
    sums = looks.sum(sums)[num_old:]
    kept = {"counts": sums[:, 0], **class_statistics(sums)._asdict()}
    for name, rows in kept.items():
        state[name] = torch.cat([state[name], rows]) if num_old else rows


def plan_replay(
    state: dict[str, Tensor], looks: Looks, model: SegmentationModel, num_old: int, num_new: int
) -> None:
    """Choose how many features of every old class an iteration replays, and how much more background weighs.

    The step's images are looked at by the old model. `replayed` (M,) int64 becomes the classes of the features,
    `background_ratio` ρ, `counts` what the next step finds. Where images of earlier steps come again (overlap), the
    cells that show an old class need no replay.
    """
    if "counts" not in state:
        measure_classes(state, looks, model, 0, num_old, of_base_step=True)
    found = torch.zeros(num_old, dtype=torch.int64, device=looks.device)
    for _, labels, old in looks:
        size = old.features.shape[2:]
        seen = labels_on_grid(old.logits.argmax(dim=1), size)
        found += torch.bincount(seen[labels_on_grid(labels, size) == 0], minlength=num_old)
    found, counts = looks.sum(found), state["counts"].clone()
    # A class of which no step has shown a cell has no statistics, whatever the old model takes for it.
    found = found.masked_fill(counts == 0, 0)
    comes_again = looks.setting == "overlap"
    background = counts[0] * (1 - OVERLAP_LOSS * num_new if comes_again else 1)
    missing = counts - found if comes_again else counts
    per_iteration = (missing.clamp(min=0) / looks.iterations_per_epoch).floor().long()
    per_iteration[0] = 0
    state["replayed"] = torch.arange(num_old, device=looks.device).repeat_interleave(per_iteration)
    state["background_ratio"] = background_ratio(background, found[0], 0.5 if comes_again else 0.0)
    state["counts"] = counts + (0 if comes_again else found)
    state["counts"][0] = background + found[0] * (0.5 if comes_again else 1)
    # The same on all ranks, whatever their random states.
    state["noise_seed"] = looks.sum(torch.randint(2**40, (), device=looks.device)).cpu()


def background_ratio(background: Tensor, found: Tensor, less: float) -> Tensor:
    """Return ρ = max(0, expected cells of background / found ones − less), 0 where none is found."""
    return torch.where(found > 0, background / found.clamp(min=1) - less, 0.0).clamp(min=0)


def draw_replay(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return an iteration's features (M,D,1,1) and their classes (M,), the same on every rank; once an iteration."""
    statistics = ClassStatistics(*(state[name] for name in ClassStatistics._fields))
    classes = state["replayed"]
    noise = draw_noise(state, len(classes), statistics.prototypes.shape[1], classes.device)
    return draw_features(statistics, classes, *noise)[:, :, None, None], classes


def draw_noise(
    state: dict[str, Tensor], num_features: int, num_channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return an iteration's normal noise of features (M,D) and of their lengths (M,1); the next one draws anew."""
    seed = state["noise_seed"].cpu()
    generator = torch.Generator(device).manual_seed(int(seed))
    state["noise_seed"] = seed + 1
    noise, length_noise = (
        torch.randn(num_features, size, generator=generator, device=device) for size in (num_channels, 1)
    )
    return noise, length_noise
