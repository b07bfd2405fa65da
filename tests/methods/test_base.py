"""methods/base.py: sums become means over what they say they run over; a method that changes nothing is fine-tuning."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods import METHODS, Method, Output, Targets, Term, means, method_of_step
from methods.base import SigmoidMethod, stack_counts
from tests.support.outputs import LABELS, OUTPUT, make_method, part_of, terms_of


def test_a_term_is_its_weight_times_its_sum_over_what_it_counts_by_hand() -> None:
    terms = {
        "a": Term(torch.tensor(12.0), "pixels"),
        "b": Term(torch.tensor(12.0), "cells", per=2, weight=5.0),
    }
    counts = {"pixels": torch.tensor(4.0).double(), "cells": torch.tensor(3.0).double()}
    assert {name: value.item() for name, value in means(terms, counts).items()} == {"a": 3.0, "b": 10.0}


def test_an_empty_selection_is_a_zero_that_keeps_its_graph() -> None:
    x = torch.ones(2, requires_grad=True)
    (term,) = means({"a": Term((0 * x).sum(), "cells", weight=3.0)}, {"cells": torch.tensor(0.0)}).values()
    assert term.item() == 0
    (gradient,) = torch.autograd.grad(term, x)
    assert gradient.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_has_the_precision_of_its_sum(dtype: torch.dtype) -> None:
    (term,) = means({"a": Term(torch.ones((), dtype=dtype), "x")}, {"x": torch.tensor(3.0).double()}).values()
    assert term.dtype == dtype


def test_targets_count_pixels_labels_images_and_batches_and_the_methods_own() -> None:
    targets = make_method(Method).make_targets(LABELS, None, {"cells": torch.tensor(7)}, extra=LABELS)
    found = {name: int(count) for name, count in targets.counts.items()}
    num_labelled = int((LABELS != 255).sum())
    assert found == {"pixels": 128, "images": 2, "batches": 1, "labelled": num_labelled, "cells": 7}
    assert targets.pseudo_labels is LABELS
    assert targets.own["extra"] is LABELS


def test_counts_of_micro_batches_add_up() -> None:
    method = make_method(Method)
    halves = [method.make_targets(LABELS[i : i + 1], None, {"own": torch.tensor(0.5)}) for i in range(2)]
    total = dict(zip(halves[0].counts, stack_counts(halves).tolist(), strict=True))
    whole = method.make_targets(LABELS)
    assert total == {**{name: float(count) for name, count in whole.counts.items()}, "batches": 2, "own": 1}


def test_terms_of_micro_batches_add_up_to_those_of_the_batch() -> None:
    method = make_method(METHODS["finetune"])
    labels = LABELS.clone()
    labels[0, 1:] = 255  # one image has next to nothing to learn from
    counts = method.make_targets(labels).counts
    parts = []
    for i in range(2):
        output = cast(Output, part_of(OUTPUT, i))
        targets = method.targets(labels[i : i + 1], output)
        parts.append(means(method.terms(output, output, targets), counts)["cross_entropy"])
    torch.testing.assert_close(sum(parts), terms_of(method, labels)["cross_entropy"])


@pytest.mark.parametrize("name", list(METHODS))
def test_the_base_step_of_every_method_is_cross_entropy_on_the_labels_as_given(name: str) -> None:
    method = method_of_step(METHODS[name].Options(name=name), num_old=0, num_new=5)
    method.modules = nn.ModuleDict(method.parts(6))
    assert not method.needs_old_model
    terms = terms_of(method, old=None)
    assert set(terms) - set(method.modules) == {"cross_entropy"}, "a part has a term of its name, if any"
    if method.scores == "softmax":
        expected = F.cross_entropy(OUTPUT.logits, LABELS, ignore_index=255)
    else:
        # DKD has no classifier of the background.
        z, shown = OUTPUT.logits.detach(), F.one_hot(LABELS.clamp(max=4), 5).permute(0, 3, 1, 2)
        first, weight = (1, torch.tensor(2.0)) if name == "dkd" else (0, None)
        loss = F.binary_cross_entropy_with_logits(z, shown.float(), pos_weight=weight, reduction="none")
        expected = loss[:, first:].sum(dim=1)[LABELS != 255].mean()
    torch.testing.assert_close(terms["cross_entropy"], expected)


def test_a_batch_of_ignored_pixels_teaches_nothing() -> None:
    for kind in (Method, SigmoidMethod):
        (term,) = terms_of(make_method(kind), torch.full_like(LABELS, 255)).values()
        assert term.item() == 0
        assert torch.autograd.grad(term, OUTPUT.logits)[0].abs().sum() == 0


def test_joint_is_fine_tuning_on_everything_seen() -> None:
    joint = METHODS["joint"]
    assert joint.defaults == {"data": {"train_on": "seen"}}
    assert joint.targets is Method.targets
    assert joint.terms is Method.terms


def test_targets_are_what_the_old_model_and_labels_ask_for_and_cannot_be_changed() -> None:
    targets = Targets(LABELS, LABELS, {})
    with pytest.raises(AttributeError):
        targets.labels = LABELS  # type: ignore[misc]
