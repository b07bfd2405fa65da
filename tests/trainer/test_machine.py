"""What a card cannot do is told in one sentence: numbers that it only emulates, and a pass that is too large for it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import trainer.step
from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.training import tiny
from trainer.checks import check_parallelism
from trainer.run import describe_memory
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
