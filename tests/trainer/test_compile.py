"""train.compile: what a step runs is compiled in every step, however many there are."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from methods import method_of_step
from models import ModelOptions, SegmentationModel, SegOutput
from models.classifier import GrowingClassifier
from models.output import upsample
from tests.support.cli import write_tiny_config
from tests.support.training import WORKER
from trainer.config import Config, load_config
from trainer.iteration import Learner, backward, wrap
from trainer.network import Network

NUM_STEPS = 12


class Small(SegmentationModel):
    """One convolution and a classifier that grows."""

    def __init__(self, num_classes: list[int]) -> None:
        super().__init__(num_classes, ModelOptions(backbone="test_resnet"))
        self.backbone = nn.Conv2d(3, 6, kernel_size=2, stride=2)
        self.classifier = GrowingClassifier(6, num_classes)

    def forward(self, images: Tensor, with_stages: Any = False, full_size: bool = True) -> SegOutput:
        features = self.backbone(self.normalise(images))
        grid_logits = self.classifier(features)
        logits = upsample(grid_logits, images.shape[2:])
        return SegOutput(logits, grid_logits, features, self.classifier.class_tokens(), None)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(write_tiny_config(tmp_path), ["train.compile=true", "method=finetune"])


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile with a backend that needs no C++ compiler, and fail where PyTorch would stop compiling."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


def train_steps(config: Config) -> None:
    """One iteration in each of many steps with a class each, every one with a model of its own."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batch = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.int64)
    for step in range(1, NUM_STEPS + 1):
        num_classes = [2, *[1] * (step - 1)]
        method = method_of_step(config.method, sum(num_classes), 1)
        learner = Learner(method, Network(Small([*num_classes, 1]), nn.ModuleDict()), None)
        backward(learner, wrap(learner, config, WORKER), [batch], scaler, config, WORKER)


def test_twelve_growing_steps_are_all_compiled(
    config: Config,
) -> None:
    torch._dynamo.utils.counters.clear()
    train_steps(config)
    # The model, the targets and the terms of each.
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 3 * NUM_STEPS


def test_if_nothing_were_forgotten_pytorch_would_stop_compiling(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(FailOnRecompileLimitHit):
        train_steps(config)
