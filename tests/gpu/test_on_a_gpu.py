"""What a GPU does, seen on one: every method's arithmetic, no waiting, fixed order, half precision, full memory.

Machines without a GPU skip these; what can be shown there is in tests/trainer/test_gpu.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.step
from methods import METHODS
from tests.support.cli import call_main, call_tool, find_free_port, set_fields, write_tiny_config
from tests.support.paths import ROOT
from tests.support.training import outcome
from tests.trainer.test_gradients import (
    Iteration,
    make_batch,
    make_begun_learner,
    make_config,
    relative_difference,
)
from trainer.config import Config
from trainer.iteration import Learner, backward
from trainer.optim import build_optimizer
from trainer.step import update
from utils.distributed import Worker

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TRAINED = [name for name, method in METHODS.items() if method.trains]
CASES = [*((method, "deeplabv3") for method in TRAINED), ("mbs", "segmenter")]
SAME_EVERYWHERE = [case for case in CASES if case[0] != "star"]
"""STAR's replay draws on the device, whose numbers are others than a CPU's."""


def on_gpu(folder: Path, log: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run main.py on the GPU, in this process."""
    config = write_tiny_config(folder)
    return call_main("--config", config, "--log", log, *set_fields(*overrides), device="cuda")


def finished(folder: Path, log: str, *overrides: str) -> dict[str, Any]:
    """All that a run on the GPU leaves but for times."""
    result = on_gpu(folder, log, *overrides)
    assert result.returncode == 0, result.stdout + result.stderr
    return outcome(folder / "runs" / log)


def base_step(folder: Path) -> str:
    """Train a base step, and return the field that takes it over."""
    finished(folder, "base", "train.num_epochs=20", "train.optimizer=adamw")
    return f"init_from={folder / 'runs' / 'base' / 'checkpoints' / 'step_0.pth'}"


def first_losses(left: dict[str, Any]) -> dict[str, float]:
    """Every curve's first point."""
    return {name: curve[0][1] for name, curve in left["curves"].items()}


def prepared_learner(config: Config, device: torch.device) -> Learner:
    """What learns in a step, after the looks that its method takes, moved to the device."""
    learner = make_begun_learner(config)
    assert learner.old_model is not None
    learner.network.to(device)
    learner.old_model.to(device)
    learner.method.state = {name: x.to(device) for name, x in learner.method.state.items()}
    return learner


def one_iteration(config: Config, device: torch.device) -> Iteration:
    """Terms, gradients and weights after an update, all on the CPU."""
    learner = prepared_learner(config, device)
    network, worker = learner.network, Worker(device)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    optimizer = build_optimizer(network, config.train, is_base_step=False)
    images, labels = make_batch()
    torch.manual_seed(3)
    terms = backward(learner, network, [(images.to(device), labels.to(device))], scaler, config, worker)
    gradients = {name: p.grad.cpu().clone() for name, p in network.named_parameters() if p.grad is not None}
    update(network, optimizer, scaler, clip_grad_norm=1.0)
    weights = {name: p.detach().cpu().clone() for name, p in network.named_parameters() if p.requires_grad}
    return {name: term.cpu() for name, term in terms.items()}, gradients, weights


@contextmanager
def waits(mode: str) -> Iterator[None]:
    """Let PyTorch do this ('default', 'error') where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("method", "model"), SAME_EVERYWHERE)
def test_terms_gradients_and_update_are_those_of_a_cpu_in_float64(
    method: str, model: str, tmp_path: Path
) -> None:
    config = make_config(tmp_path, model, method=(f"method={method}",))
    ours, theirs = one_iteration(config, GPU), one_iteration(config, CPU)
    assert any(term > 0 for term in theirs[0].values())
    for a, b in zip(ours, theirs, strict=True):
        moved = {name: x for name, x in b.items() if x.norm() > 1e-12}
        assert relative_difference({name: a[name] for name in moved}, moved) < 1e-8


@pytest.mark.parametrize(("method", "model"), CASES)
def test_the_host_does_not_wait_in_an_iteration(method: str, model: str, tmp_path: Path) -> None:
    config = make_config(tmp_path, model, method=(f"method={method}",))
    learner, worker = prepared_learner(config, GPU), Worker(GPU)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    optimizer = build_optimizer(learner.network, config.train, is_base_step=False)
    images, labels = make_batch()
    batch = images.to(GPU), labels.to(GPU)
    for mode in ("default", "error"):  # what is set up once may wait
        with waits(mode):
            backward(learner, learner.network, [batch], scaler, config, worker)
            update(learner.network, optimizer, scaler, clip_grad_norm=1.0)


def test_waiting_would_be_seen() -> None:
    x = torch.ones(2, device=GPU)
    with waits("error"), pytest.raises(RuntimeError, match="synchronizing"):
        x.sum().item()


@pytest.mark.parametrize("method", METHODS)
def test_two_deterministic_runs_leave_the_same_bits(method: str, tmp_path: Path) -> None:
    fields = [f"method={method}", "train.deterministic=true", "train.amp=bf16", "train.channels_last=true"]
    if not METHODS[method].trains:
        fields.append(base_step(tmp_path))
    one = finished(tmp_path, "one", *fields)
    assert len(one["results"]["steps"]) == 2
    assert one == finished(tmp_path, "two", *fields, "data.num_workers=2")


def test_a_run_that_is_told_to_end_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("method=plop", "train.deterministic=true", "train.num_epochs=4", "train.momentum=0.9")
    whole = finished(tmp_path, "whole", *fields)
    calls = 0

    def struck(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        update(*args, **kwargs)

    monkeypatch.setattr(trainer.step, "update", struck)
    assert on_gpu(tmp_path, "cut", *fields).returncode == 128 + signal.SIGTERM
    assert "was saved after 6 iterations" in (tmp_path / "runs" / "cut" / "log.txt").read_text()
    assert finished(tmp_path, "cut", *fields) == whole


@pytest.mark.parametrize(
    "fields",
    [
        ("train.amp=bf16",),
        ("train.amp=fp16",),
        ("train.amp=auto", "train.channels_last=true"),
        ("train.compile=true",),
        ("train.compile=true", "train.amp=bf16"),
        ("train.deterministic=true",),
    ],
    ids=" ".join,
)
def test_every_precision_and_form_begins_with_the_same_losses(
    fields: tuple[str, ...], tmp_path: Path
) -> None:
    plain, other = (
        first_losses(finished(tmp_path, "plain")),
        first_losses(finished(tmp_path, "other", *fields)),
    )
    assert other == pytest.approx(plain, rel=0.03, abs=0.05)


def test_memory_that_is_full_is_told_in_one_sentence(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        result = on_gpu(tmp_path, "full", "train.crop_size=512", "train.batch_size=16")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.returncode == 2
    assert f"the memory of {torch.cuda.get_device_name()} " in result.stderr
    assert "raise train.accumulate (here 1)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_launcher_with_one_rank_trains_through_nccl(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=1",
        f"--master_port={find_free_port()}",
        "--",
    ]
    command = [sys.executable, *launcher, str(ROOT / "main.py"), "--config", str(config), "--log", "one"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / "runs" / "one" / "results.json").read_text())
    assert len(results["steps"]) == 2


@pytest.mark.parametrize("method", ["mbs", "ridge", "segacil"])
def test_scores_of_a_checkpoint_are_those_of_a_cpu(method: str, tmp_path: Path) -> None:
    finished(tmp_path, "run", f"method={method}", base_step(tmp_path))
    checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "step_1.pth"
    scores = []
    for device in ("cuda", "cpu"):
        path = tmp_path / f"{device}.json"
        result = call_tool("evaluate", checkpoint, "--device", device, "--json", path)
        assert result.returncode == 0, result.stdout + result.stderr
        scores.append(json.loads(path.read_text())["miou_all"])
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert scores[0] > 0.05
