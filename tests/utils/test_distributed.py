"""utils/distributed.py: how ranks meet, wait for each other, and leave."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

import utils.distributed
from tests.support.cli import LAUNCHER_VARIABLES, find_free_port
from tests.support.training import tiny
from trainer.history import History
from utils.distributed import RankLostError, Worker, agree_on_start, process_group

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PATIENCE = timedelta(seconds=60)


def start(store: dist.Store, rank: int, patience: timedelta = PATIENCE) -> str:
    return agree_on_start(store, Worker(CPU, rank, 2), patience)


def test_ranks_that_start_together_agree_on_a_name_that_no_earlier_start_has_left_in_the_store() -> None:
    store = dist.HashStore()
    names = []
    with ThreadPoolExecutor(2) as ranks:
        for _ in range(3):
            first, second = ranks.map(start, [store] * 2, range(2))
            assert first == second
            names.append(first)
        assert len(set(names)) == 3


def test_a_rank_that_has_begun_to_wait_meets_one_that_was_started_anew() -> None:
    store = dist.HashStore()
    with pytest.raises(RankLostError, match=r"rank 1 of 2 has not come within 0 s \(distributed\.timeout\)"):
        start(
            store, 0, timedelta(seconds=0.1)
        )  # and is restarted, of which the other's launcher knows nothing
    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(start, [store] * 2, range(2))
    assert first == second


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's environment of a single rank."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("error", [None, SystemExit(143), ValueError("a field"), RuntimeError("a bug")])
def test_the_group_is_left_on_every_way_out(error: BaseException | None) -> None:
    def work() -> None:
        with process_group("cpu") as worker:
            assert dist.is_initialized()
            assert worker.world_size == 1
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert not dist.is_initialized()


@pytest.mark.usefixtures("alone")
def test_after_an_error_gpus_leave_without_waiting_for_what_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[str] = []
    monkeypatch.setattr(utils.distributed, "find_worker", lambda _: Worker(GPU))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("destroyed"))
    monkeypatch.setattr(distributed_c10d, "_abort_process_group", lambda: left.append("aborted"))
    with process_group("cuda"):
        pass
    with pytest.raises(SystemExit), process_group("cuda"):
        raise SystemExit(143)
    assert left == ["destroyed", "aborted"]


class TestWaits:
    """Ranks wait for each other between CPUs, where one that is lost is named, before they wait for a GPU."""

    worker = Worker(GPU, rank=0, world_size=2)

    @pytest.fixture(autouse=True)
    def _other_rank_is_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def lost(x: Tensor, *_: Any, **__: Any) -> None:
            assert x.device == CPU, "a wait for a GPU before the one between CPUs"
            raise RuntimeError("[gloo] Connection closed by peer")

        monkeypatch.setattr(dist, "all_reduce", lost)
        monkeypatch.setattr(dist, "broadcast", lost)

        def objects(_: Any, device: torch.device, **__: Any) -> None:
            lost(torch.empty(0, device=device))

        monkeypatch.setattr(dist, "broadcast_object_list", objects)

    def history(self, tmp_path: Any) -> Callable[[], object]:
        """The entry of an iteration whose terms are where no copy comes back from."""
        history = History(0, 0, tiny(tmp_path, "a"), self.worker, cast(Any, None))
        history.add({"cross_entropy": torch.ones((), device="meta")})
        return lambda: history.flush(0, 0, 0.1, None)

    def test_for_the_entries_of_the_metrics(self, tmp_path: Any) -> None:
        with pytest.raises(RuntimeError, match="gloo"):
            self.history(tmp_path)()

    def test_for_what_the_main_process_does(self) -> None:
        with pytest.raises(RuntimeError, match="gloo"):
            self.worker.main_only(lambda: 1)

    def test_for_an_agreement(self) -> None:
        with pytest.raises(RuntimeError, match="gloo"):
            self.worker.meet()
