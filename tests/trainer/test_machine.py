"""What a card cannot do is told in one sentence: numbers that it only emulates, and a pass that is too large for it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

import trainer.step
from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.training import tiny
from trainer.checks import check_parallelism
from trainer.precision import check_same_precision, settle_precision
from trainer.run import describe_memory
from utils.config.read import read_yaml
from utils.distributed import Worker

GPU = Worker(torch.device("cuda", 0))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card of 16 GiB; what it says of bf16 is its `bf16`."""
    card = SimpleNamespace(bf16=False)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * 2**30)
    )
    # With emulation, which is what it is asked for by default, it says yes.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: card.bf16 or including_emulation
    )
    return card


def test_bf16_is_refused_by_the_name_of_a_card_that_would_emulate_it(
    tmp_path: Path, card: SimpleNamespace
) -> None:
    config = tiny(tmp_path, "a", "train.amp=bf16")
    with pytest.raises(ValueError, match=r"^train\.amp: Tesla T4 has no bf16 .* use fp16 or off$"):
        check_parallelism(config, GPU)
    check_parallelism(tiny(tmp_path, "a", "train.amp=fp16"), GPU)
    card.bf16 = True
    check_parallelism(config, GPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "off"), ({}, "off")],
    ids=str,
)
def test_auto_is_bf16_where_a_cpu_computes_in_it(
    capabilities: dict[str, bool], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    config = settle_precision(tiny(tmp_path, "a", "train.amp=auto"), torch.device("cpu"))
    assert config.train.amp == expected
    assert settle_precision(tiny(tmp_path, "a", "train.amp=fp16"), torch.device("cpu")).train.amp == "fp16"


def test_auto_is_bf16_on_cards_that_do_not_emulate_it(tmp_path: Path, card: SimpleNamespace) -> None:
    config = tiny(tmp_path, "a", "train.amp=auto")
    assert settle_precision(config, GPU.device).train.amp == "off"
    card.bf16 = True
    assert settle_precision(config, GPU.device).train.amp == "bf16"


def test_a_run_goes_on_in_the_precision_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--config", str(write_tiny_config(tmp_path)), "--log", "a", *set_fields("train.amp=auto")]

    def with_bf16(found: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": found}, raising=False)

    with_bf16(True)
    first = call_main(*command)
    assert "1 × cpu, bf16" in first.stderr + first.stdout
    run_dir = tmp_path / "runs" / "a"
    assert read_yaml(run_dir / "config.yaml")["train"]["amp"] == "bf16"
    results = (run_dir / "results.json").read_bytes()
    with_bf16(False)
    assert call_main(*command).returncode == 0
    assert read_yaml(run_dir / "config.yaml")["train"]["amp"] == "bf16"
    assert (run_dir / "results.json").read_bytes() == results


def test_ranks_whose_machines_differ_are_told_apart(tmp_path: Path) -> None:
    worker = cast(Worker, SimpleNamespace(gather=lambda _: ["bf16", "off"]))
    with pytest.raises(
        ValueError, match=r"^train\.amp: auto .* \(rank 0: bf16, rank 1: off\); set it to bf16 or off"
    ):
        check_same_precision(tiny(tmp_path, "a"), worker)


def test_a_pass_that_is_too_large_for_the_memory_ends_the_run_in_one_sentence_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trainer.step, "backward", full)
    fields = set_fields("train.accumulate=2", "evaluate.batch_size=7")
    outcome = call_main("--config", write_tiny_config(tmp_path), "--log", "full", *fields)
    assert outcome.returncode == 2
    told = outcome.stderr.splitlines()[-1]
    assert told == (
        "error: the memory of this machine is full, rank 0; raise train.accumulate (here 2) if it happened in "
        "training, lower evaluate.batch_size (here 7) if in evaluation, or lower train.crop_size (here 32); scores may "
        "change, so give the run another --log"
    )
    assert "Tried to allocate 2.00 GiB" in (tmp_path / "runs" / "full" / "log.txt").read_text()


@pytest.mark.usefixtures("card")
def test_of_a_gpu_name_and_size_are_told(tmp_path: Path) -> None:
    assert describe_memory(tiny(tmp_path, "a"), GPU).startswith(
        "the memory of Tesla T4 (16 GiB) is full, rank 0;"
    )
