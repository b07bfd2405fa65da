"""Every method in a tiny run: its terms, what it starts from, its base steps, and a gradient that no cut changes."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from methods import METHODS, method_of_step
from tests.support.cli import write_tiny_config
from tests.trainer.test_gradients import (
    STEP,
    assert_equal_iterations,
    make_batch,
    make_learner,
    make_models,
    one_iteration,
    targets_of,
)
from tests.trainer.test_gradients import make_config as make_gradient_config
from trainer.checkpoint import checkpoint_path, load_checkpoint, new_model
from trainer.config import Config, load_config
from trainer.plan import prepare
from trainer.run import run
from trainer.step import prepare_for_training
from utils.distributed import Worker

WORKER = Worker(torch.device("cpu"))
TERMS = {
    "finetune": ["cross_entropy"],
    "joint": ["cross_entropy"],
    "lwf": ["cross_entropy", "output_distillation"],
    "ilt": ["cross_entropy", "feature_distillation", "output_distillation"],
    "mib": ["cross_entropy", "output_distillation"],
    "plop": ["cross_entropy", "local_pod"],
    "ssul": ["cross_entropy"],
    "dkd": ["cross_entropy", "output_distillation", "decomposed_distillation", "auxiliary"],
    "mbs": ["cross_entropy", "feature_distillation", "output_distillation", "orthogonal"],
}
"""What a run of DeepLabV3 writes of its incremental steps, of the methods whose terms are known here."""
MAY_BE_ZERO = {"star": {"background"}, "barm": {"triplet"}, "mbs_ucb": {"feature_distillation"}}
"""Terms of what the old model of a tiny run may see nowhere."""
RIVALS = [
    name for name, method in METHODS.items() if method.trains and name not in ("mbs", "finetune", "joint")
]


def make_config(folder: Path, *overrides: str) -> Config:
    return load_config(write_tiny_config(folder), overrides)


@pytest.mark.parametrize("method", RIVALS)
def test_a_tiny_run_writes_the_terms_of_its_method(method: str, tmp_path: Path) -> None:
    # A base step so short is sure of no pixel by the released rule.
    more = ("method.thresholds=paper",) if method == "plop" else ()
    config = make_config(tmp_path, f"method={method}", *more)
    run(prepare(config, WORKER), WORKER)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    entries = [line for line in lines if line["step"] == 1 and "lr" in line]
    assert len(entries) > 1
    known = {"step", "iteration", "epoch", "loss", "lr", "images_per_second"}
    for entry in entries:
        terms = [name for name in entry if name not in known]
        assert terms == TERMS.get(method, terms)
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in terms))
    for term in set(terms) - MAY_BE_ZERO.get(method, set()):
        assert sum(entry[term] for entry in entries) > 0


@pytest.mark.parametrize("method", RIVALS)
def test_two_micro_batches_give_the_gradient_of_the_batch(method: str, tmp_path: Path) -> None:
    config = make_gradient_config(
        tmp_path,
        "deeplabv3",
        "train.clip_grad_norm=0.001",
        "train.freeze_extractor=false",
        method=(f"method={method}",),
    )
    whole = one_iteration(config, WORKER, accumulate=1)
    assert list(whole[0]) == TERMS.get(method, list(whole[0]))
    assert_equal_iterations(one_iteration(config, WORKER, accumulate=2), whole)


def test_the_factors_of_plop_differ_between_the_images_of_that_batch(tmp_path: Path) -> None:
    learner = make_learner(make_gradient_config(tmp_path, "deeplabv3", method=("method=plop",)))
    assert targets_of(learner).own["weights"].unique().numel() > 2
    assert learner.old_model is not None
    stages = learner.old_model(make_batch()[0], with_stages=True).stages
    assert [stage.shape[2] for stage in stages] == [8, 4, 4, 4]


def test_mib_starts_new_classes_with_an_equal_share_of_the_backgrounds_probability(tmp_path: Path) -> None:
    for more in (
        (),
        ("model.name=segmenter", "model.backbone=test_vit", "model.num_heads=2", "model.channels=8"),
    ):
        config = make_config(tmp_path, "method=mib", *more)
        model = new_model(config, [3]).eval()
        if more:  # as training leaves them
            state = model.state_dict()
            state["classifier.scales.0"] = torch.tensor([2.0, 1.5, 0.5])
            state["classifier.shifts.0"] = torch.tensor([1.5, -1.0, 0.2])
            model.load_state_dict(state)
        images = make_batch()[0][:2]
        before = model(images)
        method_of_step(config.method, 3, 2).add_classes(model, 2)
        after = model(images)
        torch.testing.assert_close(after.logits[:, 3:], after.logits[:, :1].expand(-1, 2, -1, -1))
        if not more:
            torch.testing.assert_close(after.logits[:, 0], before.logits[:, 0] - math.log(3))
            shares = after.logits.softmax(dim=1)[:, [0, 3, 4]]
            expected = before.logits.softmax(dim=1)[:, :1] / 3
            torch.testing.assert_close(shares, expected.expand_as(shares))


def test_ssul_trains_the_new_classifier_only_and_keeps_statistics(tmp_path: Path) -> None:
    rows = ("method=ssul", "model.classifier=rows")
    config = make_config(tmp_path, *rows, "train.freeze_bn=false", "train.weight_decay=0.1")
    run(prepare(config, WORKER), WORKER)
    before, after = (load_checkpoint(checkpoint_path(config.run_dir, step))["model"] for step in (0, 1))
    assert after.keys() - before.keys() == {"classifier.heads.1.weight", "classifier.heads.1.bias"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    model, _ = make_models(config)
    prepare_for_training(model, STEP, config.train)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [id(p) for p in trainable] == [id(p) for p in model.newest_parameters()]
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_base_steps_are_shared_by_methods_with_the_same_scores_only(tmp_path: Path) -> None:
    ours = make_config(tmp_path, "method=finetune", "log=base")
    run(prepare(ours, WORKER), WORKER)
    base_step = f"init_from={checkpoint_path(ours.run_dir, 0)}"
    prepare(make_config(tmp_path, "method=mib", "log=other", base_step), WORKER)
    told = r"init_from: .* trained with method finetune, whose scores are a softmax, this run is with ssul, .* sigmoids"
    rows = ("method=ssul", "model.classifier=rows")
    with pytest.raises(ValueError, match=told):
        prepare(make_config(tmp_path, *rows, "log=other", base_step), WORKER)


def test_the_modules_of_a_method_are_saved_with_the_network_and_go_on_learning(tmp_path: Path) -> None:
    config = make_config(tmp_path, "method=dkd")
    run(prepare(config, WORKER), WORKER)
    before, after = (load_checkpoint(checkpoint_path(config.run_dir, step)) for step in (0, 1))
    assert before["parts"].keys() == after["parts"].keys() == {"auxiliary.weight", "auxiliary.bias"}
    assert not torch.equal(after["parts"]["auxiliary.weight"], before["parts"]["auxiliary.weight"])
    assert not any("auxiliary" in name for name in after["model"])


def test_a_base_step_without_the_methods_modules_serves_and_the_run_says_so(tmp_path: Path) -> None:
    base = make_config(tmp_path, "method=ssul", "model.classifier=rows", "log=base")
    run(prepare(base, WORKER), WORKER)
    path = checkpoint_path(base.run_dir, 0)
    config = make_config(tmp_path, "method=dkd", f"init_from={path}")
    run(prepare(config, WORKER), WORKER)
    theirs, taken = (load_checkpoint(checkpoint_path(c.run_dir, 0)) for c in (base, config))
    assert taken["parts"] == {}
    assert all(torch.equal(taken["model"][name], weight) for name, weight in theirs["model"].items())
    assert load_checkpoint(checkpoint_path(config.run_dir, 1))["parts"].keys() > {"auxiliary.weight"}
    log = (config.run_dir / "log.txt").read_text()
    assert (
        "method dkd: the base step was trained without its modules (auxiliary); they start at step 1" in log
    )


def test_a_base_step_with_modules_of_another_method_is_taken_without_them(tmp_path: Path) -> None:
    base = make_config(tmp_path, "method=dkd", "log=base")
    run(prepare(base, WORKER), WORKER)
    rows = ("method=ssul", "model.classifier=rows")
    config = make_config(tmp_path, *rows, f"init_from={checkpoint_path(base.run_dir, 0)}")
    run(prepare(config, WORKER), WORKER)
    assert [load_checkpoint(checkpoint_path(config.run_dir, step))["parts"] for step in (0, 1)] == [{}, {}]


def test_the_auxiliary_classifier_teaches_the_network_nothing(tmp_path: Path) -> None:
    gradients = []
    for weight in (0, 100):
        dkd = ("method=dkd", f"method.auxiliary_weight={weight}")
        config = make_gradient_config(tmp_path, "deeplabv3", "train.clip_grad_norm=0.001", method=dkd)
        gradients.append(one_iteration(config, WORKER, accumulate=1)[1])
    changed = {name for name in gradients[0] if not torch.equal(gradients[0][name], gradients[1][name])}
    assert changed == {"parts.auxiliary.weight", "parts.auxiliary.bias"}


def test_the_thresholds_of_plop_are_measured_before_a_step_and_kept_in_its_checkpoint(tmp_path: Path) -> None:
    config = make_config(tmp_path, "method=plop", "train.batch_size=6")
    run(prepare(config, WORKER), WORKER)
    base, first = (load_checkpoint(checkpoint_path(config.run_dir, step))["method_state"] for step in (0, 1))
    assert base == {}
    thresholds = first["thresholds"]
    assert thresholds.shape == (3,)
    assert ((thresholds >= 0.001) & (thresholds <= 1)).all()
    assert (thresholds < 1).any()
