"""Every method as its preset sets it: its fields, its terms in a tiny run, and a gradient that no cut changes."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from losses.local_pod import join_new_to_background, local_pod
from models import SegmentationModel, load_model
from tests.support.cli import write_tiny_config
from tests.trainer.test_gradients import STEP, assert_equal_iterations, make_batch, make_models, one_iteration
from tests.trainer.test_gradients import make_config as make_gradient_config
from trainer.checkpoint import checkpoint_path, load_checkpoint, new_model, restore_base, save_checkpoint
from trainer.config import METHODS, Config, load_config
from trainer.plan import prepare
from trainer.run import run
from trainer.step import build_objective, prepare_for_training
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
"""What a run of DeepLabV3 writes of its incremental steps."""
RIVALS = ["lwf", "ilt", "mib", "plop", "ssul", "dkd"]


def make_config(folder: Path, *overrides: str) -> Config:
    return load_config(write_tiny_config(folder), overrides)


def test_every_method_has_a_row_here() -> None:
    assert set(TERMS) == set(METHODS)


@pytest.mark.parametrize("method", RIVALS)
def test_a_tiny_run_writes_the_terms_of_its_method(method: str, tmp_path: Path) -> None:
    config = make_config(tmp_path, f"method={method}")
    run(prepare(config, WORKER), WORKER)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    entries = [line for line in lines if line["step"] == 1 and "lr" in line]
    assert len(entries) > 1
    known = {"step", "iteration", "epoch", "loss", "lr", "images_per_second"}
    for entry in entries:
        assert [name for name in entry if name not in known] == TERMS[method]
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in TERMS[method]))
    for term in TERMS[method]:
        assert sum(entry[term] for entry in entries) > 0


@pytest.mark.parametrize("method", RIVALS)
def test_two_micro_batches_give_the_gradient_of_the_batch(method: str, tmp_path: Path) -> None:
    config = make_gradient_config(
        tmp_path,
        "deeplabv3",
        f"method={method}",
        "train.clip_grad_norm=0.001",
        "train.freeze_extractor=false",
    )
    whole = one_iteration(config, WORKER, accumulate=1)
    assert list(whole[0]) == TERMS[method]
    assert_equal_iterations(one_iteration(config, WORKER, accumulate=2), whole)


def test_the_factors_of_plop_differ_between_the_images_of_that_batch(tmp_path: Path) -> None:
    config = make_gradient_config(tmp_path, "deeplabv3", "method=plop")
    images, labels = make_batch()
    old = make_models(config)[1](images, with_stages=True)
    factors = build_objective(config, STEP).prepare(labels, old).image_weights
    assert factors is not None
    assert factors.unique().numel() > 2
    assert [stage.shape[2] for stage in old.stages] == [8, 4, 4, 4]


def test_only_selective_pseudo_labels_ignore_what_the_old_model_is_unsure_of(tmp_path: Path) -> None:
    logits = torch.tensor([0.2, 0.5, 0.0]).view(
        1, 3, 1, 1
    )  # an old class is likelier than background, none is sure
    for kind, expected in (("selective", 255), ("plain", 0)):
        config = make_config(tmp_path, f"loss.pseudo_label.kind={kind}", "loss.pseudo_label.threshold=0.7")
        pseudo_label = build_objective(config, STEP).pseudo_label
        assert pseudo_label is not None
        assert int(pseudo_label(torch.zeros(1, 1, 1, dtype=torch.int64), logits)) == expected


def test_local_pod_is_the_mean_over_stages_features_and_logits_each_with_its_weight(tmp_path: Path) -> None:
    images, labels = make_batch()
    for changed, expected_maps in (("weight", 4), ("features_weight", 1), ("logits_weight", 1)):
        weights = {"weight": 0.0, "features_weight": 0.0, "logits_weight": 0.0, changed: 3.0}
        fields = [f"loss.local_pod.{name}={weight}" for name, weight in weights.items()]
        config = make_gradient_config(tmp_path, "deeplabv3", "method=plop", *fields)
        model, old_model = make_models(config)
        output, old = (network(images, with_stages=True) for network in (model, old_model))
        objective = build_objective(config, STEP)
        targets = objective.prepare(labels, old)
        term = objective(output, old, labels, targets, targets.counts)["local_pod"]
        joined = join_new_to_background(output.grid_logits, STEP.num_old)
        pairs = {
            "weight": zip(output.stages, old.stages, strict=True),
            "features_weight": [(output.features, old.features)],
            "logits_weight": [(joined, old.grid_logits)],
        }
        distances = [local_pod(new, kept)[0] / len(images) for new, kept in pairs[changed]]
        assert len(distances) == expected_maps
        scale = math.sqrt((STEP.num_old + STEP.num_new) / STEP.num_new)
        torch.testing.assert_close(term, 3.0 * scale * torch.stack(distances).sum() / 6)


def test_mib_starts_new_classes_with_an_equal_share_of_the_backgrounds_probability(tmp_path: Path) -> None:
    for more in ((), ("model.name=segmenter", "model.backbone=test_vit", "model.num_heads=2")):
        config = make_config(tmp_path, "method=mib", *more)
        model = new_model(config, [3]).eval()
        if more:  # as training leaves them
            state = model.state_dict()
            state["classifier.scales.0"] = torch.tensor([2.0, 1.5, 0.5])
            state["classifier.shifts.0"] = torch.tensor([1.5, -1.0, 0.2])
            model.load_state_dict(state)
        images = make_batch()[0][:2]
        before = model(images)
        model.grow(2, config.loss.weight_transfer, config.loss.balanced_bias)
        after = model(images)
        torch.testing.assert_close(after.logits[:, 3:], after.logits[:, :1].expand(-1, 2, -1, -1))
        if not more:
            torch.testing.assert_close(after.logits[:, 0], before.logits[:, 0] - math.log(3))
            shares = after.logits.softmax(dim=1)[:, [0, 3, 4]]
            expected = before.logits.softmax(dim=1)[:, :1] / 3
            torch.testing.assert_close(shares, expected.expand_as(shares))


def test_ssul_trains_the_new_classifier_only_and_keeps_statistics(tmp_path: Path) -> None:
    config = make_config(tmp_path, "method=ssul", "train.freeze_bn=false", "train.weight_decay=0.1")
    run(prepare(config, WORKER), WORKER)
    before, after = (load_checkpoint(checkpoint_path(config.run_dir, step))["model"] for step in (0, 1))
    assert after.keys() - before.keys() == {"classifier.heads.1.weight", "classifier.heads.1.bias"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    model, _ = make_models(config)
    prepare_for_training(model, STEP, config.train)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [id(p) for p in trainable] == [id(p) for p in model.newest_parameters()]
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_the_base_step_of_ssul_is_binary_and_is_not_mixed_with_others(tmp_path: Path) -> None:
    config = make_config(tmp_path, "method=ssul")
    base, first = (build_objective(config, prepare(config, WORKER).task.steps[i]) for i in (0, 1))
    assert base.cross_entropy == first.cross_entropy == "bce"
    assert not base.needs_old_model
    assert build_objective(make_config(tmp_path, "method=mib"), STEP).cross_entropy == "unbiased"
    ours = make_config(tmp_path, "method=finetune", "log=base")
    run(prepare(ours, WORKER), WORKER)
    base_step = f"init_from={checkpoint_path(ours.run_dir, 0)}"
    prepare(make_config(tmp_path, "method=mib", "log=other", base_step), WORKER)
    with pytest.raises(ValueError, match=r"init_from: .*loss.cross_entropy plain, this run is with bce"):
        prepare(make_config(tmp_path, "method=ssul", "log=other", base_step), WORKER)


def test_new_classes_of_dkd_start_as_the_auxiliary_classifier_that_the_checkpoint_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def remember(model: SegmentationModel, *arguments: object) -> float:
        if len(model.num_classes) == 2:
            starts.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return train_step(model, *arguments)  # type: ignore[arg-type]

    from trainer.step import train_step

    monkeypatch.setattr("trainer.run.train_step", remember)
    config = make_config(tmp_path, "method=dkd")
    run(prepare(config, WORKER), WORKER)
    before, after = (load_checkpoint(checkpoint_path(config.run_dir, step))["model"] for step in (0, 1))
    (start,) = starts
    for part in ("weight", "bias"):
        learned = before[f"classifier.auxiliary.{part}"]
        assert torch.equal(start[f"classifier.heads.1.{part}"], torch.cat([learned, learned]))
        assert not torch.equal(after[f"classifier.auxiliary.{part}"], learned), "it goes on learning"
    model, _ = load_model(checkpoint_path(config.run_dir, 1))
    assert model(make_batch()[0][:1]).auxiliary_logits.shape == (1, 1, 2, 2)
    for_ssul = restore_base(
        make_config(tmp_path, "method=ssul"), load_checkpoint(checkpoint_path(config.run_dir, 0))
    )
    assert "classifier.auxiliary.weight" not in for_ssul.state_dict()


def test_a_base_step_of_ssul_serves_dkd_whose_auxiliary_classifier_then_starts_as_the_background(
    tmp_path: Path,
) -> None:
    base = make_config(tmp_path, "method=ssul", "log=base")
    run(prepare(base, WORKER), WORKER)
    path = checkpoint_path(base.run_dir, 0)
    config = make_config(tmp_path, "method=dkd", f"init_from={path}")
    run(prepare(config, WORKER), WORKER)
    theirs, taken = (load_checkpoint(checkpoint_path(c.run_dir, 0))["model"] for c in (base, config))
    assert taken.keys() - theirs.keys() == {f"classifier.auxiliary.{part}" for part in ("weight", "bias")}
    assert all(torch.equal(taken[name], weight) for name, weight in theirs.items())
    for part in ("weight", "bias"):
        background = taken[f"classifier.heads.0.{part}"][:1]
        assert torch.equal(taken[f"classifier.auxiliary.{part}"], background)
    assert "it starts as the background's classifier" in (config.run_dir / "log.txt").read_text()


def test_the_auxiliary_classifier_teaches_the_features_nothing(tmp_path: Path) -> None:
    gradients = []
    for weight in (0, 100):
        config = make_gradient_config(
            tmp_path,
            "deeplabv3",
            "method=dkd",
            "train.clip_grad_norm=0.001",
            f"loss.auxiliary_weight={weight}",
        )
        gradients.append(one_iteration(config, WORKER, accumulate=1)[1])
    changed = {name for name in gradients[0] if not torch.equal(gradients[0][name], gradients[1][name])}
    assert changed == {"classifier.auxiliary.weight", "classifier.auxiliary.bias"}


def test_a_checkpoint_older_than_the_auxiliary_classifier_still_loads(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    values = config.model_dump(mode="json")
    del values["model"]["auxiliary_classifier"]
    path = checkpoint_path(tmp_path, 0)
    names = {"class_names": ["background", "disc"], "palette": [[0, 0, 0]] * 2, "num_classes": [2]}
    save_checkpoint(path, new_model(config, [2]), step=0, config=values, **names)
    model, _ = load_model(path)
    assert model(make_batch()[0][:1]).auxiliary_logits is None
    assert restore_base(config, load_checkpoint(path)).num_classes == [2]


def test_plop_measures_its_thresholds_on_the_images_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def remember(*arguments: object) -> object:
        found.append(measure(*arguments))  # type: ignore[arg-type]
        return found[-1]

    from trainer.thresholds import measure_thresholds as measure

    monkeypatch.setattr("trainer.run.measure_thresholds", remember)
    config = make_config(tmp_path, "method=plop", "train.batch_size=6")
    run(prepare(config, WORKER), WORKER)
    (thresholds,) = found  # none in the base step
    assert thresholds.shape == (3,)
    assert ((thresholds >= 0.001) & (thresholds <= 1)).all()
    assert (thresholds < 1).any()


def test_plop_is_refused_where_the_backbone_has_no_stages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss.local_pod.enabled: .* model.name segmenter"):
        make_config(tmp_path, "method=plop", "model.name=segmenter")


def test_dkd_is_refused_where_classes_have_no_rows_and_beside_weight_transfer(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"decomposed_distillation.enabled: .* model.name segmenter"
    ) as caught:
        make_config(tmp_path, "method=dkd", "model.name=segmenter")
    assert "model.auxiliary_classifier: is about the rows" in str(caught.value)
    with pytest.raises(ValueError, match=r"model.auxiliary_classifier: .*loss.weight_transfer"):
        make_config(tmp_path, "method=dkd", "loss.weight_transfer=true")


def test_weights_of_the_files_method_do_not_reach_another_one_named_by_set(tmp_path: Path) -> None:
    path = write_tiny_config(tmp_path)
    path.write_text(path.read_text() + "loss: {output_distillation: {weight: 18}}\n")
    assert load_config(path).loss.output_distillation.weight == 18
    assert load_config(path, ["method=mbs"]).loss.output_distillation.weight == 18
    assert load_config(path, ["method=mib"]).loss.output_distillation.weight == 10
    by_hand = load_config(path, ["method=mib", "loss.output_distillation.weight=3"])
    assert by_hand.loss.output_distillation.weight == 3
    assert by_hand.loss.output_distillation.kind == "unbiased"


def test_fields_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss.balanced_bias: .* needs loss.weight_transfer"):
        make_config(tmp_path, "method=finetune", "loss.balanced_bias=true")
    with pytest.raises(ValueError, match=r"adaptive_factor: needs loss.pseudo_label.enabled"):
        make_config(tmp_path, "method=finetune", "loss.pseudo_label.adaptive_factor=true")
