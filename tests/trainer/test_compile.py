"""train.compile: what a step runs is compiled in every step, however many there are."""

from collections import Counter
from collections.abc import Callable, Iterator
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
COMPILE = torch.compile


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
    """lwf asks the old model too."""
    return load_config(write_tiny_config(tmp_path), ["train.compile=true", "method=lwf"])


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile with a backend that needs no C++ compiler, and fail where PyTorch would stop compiling."""
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend="eager"))
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
        old_model = Small(num_classes).eval().requires_grad_(False)
        learner = Learner(method, Network(Small([*num_classes, 1]), nn.ModuleDict()), old_model)
        backward(learner, wrap(learner, config, WORKER), [batch], scaler, config, WORKER)


def test_in_twelve_growing_steps_both_models_and_the_objective_are_compiled(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[bool] = []

    def note_models(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile as backend eager does, and note whether the weight of a model's convolution trains."""
        trained.extend(x.requires_grad for x in inputs if isinstance(x, Tensor) and x.shape == (6, 3, 2, 2))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=note_models))
    torch._dynamo.utils.counters.clear()
    train_steps(config)
    assert Counter(trained) == {True: NUM_STEPS, False: NUM_STEPS}
    # Both models, the targets and the terms of each.
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 4 * NUM_STEPS


def test_if_nothing_were_forgotten_pytorch_would_stop_compiling(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(FailOnRecompileLimitHit):
        train_steps(config)
