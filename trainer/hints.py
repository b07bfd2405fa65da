"""What is said of a class that a step has not learned: how rare it is, what it is taken for, what to try."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datasets.tasks import Step
from datasets.unreadable import Unreadable
from trainer.checkpoint import RERUN, checkpoint_path, load_checkpoint, restore_model
from trainer.plan import FEW_ITERATIONS
from trainer.session import Session
from trainer.validation import Validation, evaluate

RARE = 0.01
"""Of the labelled pixels."""
MAX_LOOKS = 200
"""Validation images of which the old model is asked."""


def explain_unlearned(session: Session, step: Step, validation: Validation) -> list[str]:
    """Return a line for every new class that validation images show and that has IoU 0. All ranks call it.

    A step that is taken over has learned nothing here, and has none.
    """
    plan, confusion = session.plan, validation.confusion
    labelled = confusion.sum(axis=1)
    classes = [c for c in step.new_classes if c > 0 and labelled[c] > 0 and confusion[c, c] == 0]
    if not classes or (step.index == 0 and plan.config.takes_base):
        return []
    old = ask_old_model(session, step) if step.index > 0 else None
    return [
        describe_unlearned(
            plan.task.class_names,
            c,
            confusion,
            None if old is None else old[c],
            len(plan.image_ids[step.index]),
            plan.num_iterations(step, session.worker),
        )
        for c in classes
    ]


def describe_unlearned(
    names: Sequence[str],
    class_id: int,
    confusion: npt.NDArray[np.int64],
    old: npt.NDArray[np.int64] | None,
    num_images: int,
    num_iterations: int,
) -> str:
    """Return what is said of a class with IoU 0.

    confusion: pixel counts (K,K) of the model; old: what the old model takes the class's pixels for, counts (K,), None
    in the base step. num_iterations is 0 where the step was solved.
    """
    share = confusion[class_id].sum() / max(1, confusion.sum())
    where = "predicted only where it is not" if confusion[:, class_id].any() else "never predicted"
    told = [
        f"{names[class_id]} has IoU 0: it is {where}. It has {share:.2%} of the labelled validation pixels, and the "
        f"step {num_images} training images"
        + (f" and {num_iterations} iterations" if num_iterations else ""),
        f"it is taken for {_describe_counts(names, confusion[class_id])}",
    ]
    if old is not None and old.any():
        told.append(f"the old model takes it for {_describe_counts(names, old)}")
    remedies = []
    if 0 < num_iterations < FEW_ITERATIONS:
        remedies.append("more iterations (train.min_iterations=300)")
    if share < RARE:
        remedies.append("rare.class_weights=balanced (docs/training.md, 'Rare classes')")
    if old is not None and old[1:].sum() > old[0]:
        remedies.append("less hold on to the old model (method.output_weight, where the method has it)")
    if num_iterations:
        remedies.append("method=ridge, which solves for classes and needs few images")
    return "; ".join(told) + ("; try " + ", or ".join(remedies) if remedies else "")


def _describe_counts(names: Sequence[str], counts: npt.NDArray[np.int64]) -> str:
    """The classes that have most of these counts (K,), three at most, with their shares."""
    most = np.argsort(-counts, kind="stable")[:3]
    return ", ".join(f"{names[c]} ({counts[c] / counts.sum():.0%})" for c in most if counts[c])


def ask_old_model(session: Session, step: Step) -> npt.NDArray[np.int64]:
    """Return pixel counts (K,K) of the old model's predictions over a part of the validation images.

    Rows are the step's labels: those of new classes say what it takes them for.
    """
    plan, config, worker = session.plan, session.config, session.worker
    checkpoint = load_checkpoint(checkpoint_path(session.run_dir, step.index - 1), remedy=RERUN)
    old_model = restore_model(config, checkpoint, worker.device).eval()
    evaluation = plan.evaluation.so_far(step)
    ids = evaluation.val.ids
    places = np.linspace(0, len(ids) - 1, min(MAX_LOOKS, len(ids))).round().astype(int).tolist()
    dataset = evaluation.dataset([ids[i] for i in places][worker.rank :: worker.world_size], step)
    # The validation has told of images that cannot be read.
    unreadable = Unreadable("skip", 1.0, len(ids) + 1, "hints")
    return evaluate(old_model, dataset, step.num_classes, config, worker, unreadable)
