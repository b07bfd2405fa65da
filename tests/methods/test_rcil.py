"""methods/rcil.py: its terms, and runs whose branches merge between steps."""

import copy
import math
from pathlib import Path

import pytest
import torch

from losses.local_pod import join_new_to_background
from losses.pooled_cube import pooled_cube
from methods.rcil import RCIL
from models.compensation import two_branches
from tests.methods.test_rivals import with_stages
from tests.support.outputs import LABELS, NUM_NEW, NUM_OLD, OLD, OUTPUT, make_method, terms_of
from tests.support.training import SEGMENTER, outcome, tiny, train, weights
from tests.trainer.test_resume import killed_before
from trainer.checkpoint import new_model


def test_the_pooled_cube_is_the_mean_over_maps_of_both_parts_the_last_with_its_own_weight() -> None:
    output, old = with_stages(OUTPUT, 1), with_stages(OLD, 2)
    term = terms_of(make_method(RCIL, cube_weight=2.0, last_cube_weight=0.3), output=output, old=old)
    maps = [*zip(output.stages, old.stages, strict=True), (output.features, old.features)]
    maps.append((join_new_to_background(output.grid_logits, NUM_OLD), old.grid_logits))
    spatial, channel = ([pooled_cube(*pair)[part] / len(LABELS) for pair in maps] for part in (0, 1))
    scale = math.sqrt((NUM_OLD + NUM_NEW) / NUM_NEW)
    expected = (2 * sum(spatial[:3]) + 0.3 * spatial[3]) / 4 + (2 * sum(channel[:2]) + 0.3 * channel[2]) / 3
    torch.testing.assert_close(term["pooled_cube"], scale * expected)
    assert list(term) == ["cross_entropy", "output_distillation", "pooled_cube"]


def test_a_run_merges_between_steps_and_ends_bit_for_bit_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("method=rcil", "save_every=1", "setting=disjoint", "memory.size=8")
    plain, killed = (tiny(tmp_path, name, *fields) for name in ("plain", "killed"))
    train(plain)
    (num_base,) = {len(c) for n, c in outcome(plain.run_dir)["curves"].items() if n == "cross_entropy"}
    with killed_before(num_base - 1, monkeypatch):  # in step 1, whose branches have merged
        train(killed)
    train(killed)
    assert outcome(killed.run_dir) == outcome(plain.run_dir)
    before, after = (new_model(plain, [3] + [2] * step) for step in range(2))
    for step, model in enumerate((before, after)):
        model.load_state_dict(weights(plain, step))
    for layer, trained in zip(two_branches(before), two_branches(after), strict=True):
        assert (int(layer.num_merges), int(trained.num_merges)) == (0, 1)
        start = copy.deepcopy(layer.state_dict())
        layer.merge()
        for name, x in layer.state_dict().items():
            remembers = ".0." in name or name == "num_merges"
            assert torch.equal(trained.state_dict()[name], x) is remembers, name
        assert not torch.equal(start["convs.0.weight"], trained.convs[0].get_parameter("weight"))


def test_what_does_not_go_with_it_is_refused_and_its_network_is_a_default(tmp_path: Path) -> None:
    config = tiny(tmp_path, "default", "method=rcil")
    assert config.model.model_dump()["compensation"] is True
    assert config.train.freeze_bn is False
    with pytest.raises(ValueError, match=r"rcil compares the stages of a convolutional backbone"):
        tiny(tmp_path, "vit", "method=rcil", *SEGMENTER)
    with pytest.raises(
        ValueError, match=r"train\.fuse_old_weights: fuses weight by weight, and model\.compensation"
    ):
        tiny(tmp_path, "fused", "method=rcil", "train.fuse_old_weights=true")
