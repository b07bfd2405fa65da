"""tools/benchmark.py and tools/bench/measure.py: every row runs through the command line; memory is counted right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from methods import METHODS
from tests.support.cli import call_tool, set_fields
from tests.support.training import WORKER, tiny
from tools.bench.flops import count_flops
from tools.bench.iteration import Iteration
from tools.bench.measure import live_bytes, medians, peak_mib
from tools.bench.rows import ROWS
from tools.bench.setup import Row
from tools.benchmark import format_row

CPU = torch.device("cpu")
FIELDS = {
    *("name", "what", "ours_s", "floor_s", "ratio", "aim", "peak_mib", "logits_alive"),
    *("images_per_s", "mfu", "total_mib"),
}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `all --quick --json` writes."""
    path = tmp_path_factory.mktemp("benchmark") / "figures.json"
    result = call_tool("benchmark", "all", "--quick", "--device", "cpu", "--json", path)
    assert result.returncode == 0, result.stderr
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert result.stdout.count("\n| ") == len(content["rows"]) + 1, "a line for each row, and the heading"
    return content


def test_every_row_has_its_figures(content: dict[str, Any]) -> None:
    rows = content["rows"]
    assert list(dict.fromkeys(row["name"] for row in rows)) == list(ROWS)
    for row in rows:
        assert row.keys() == FIELDS
        assert row["ours_s"] > 0
        if row["floor_s"] is None:
            assert row["ratio"] is None
        else:
            assert row["ratio"] == pytest.approx(row["ours_s"] / row["floor_s"])
    objectives = [row for row in rows if row["name"] == "objective"]
    assert all(row["logits_alive"] > 0 for row in objectives)
    trained = [name for name, method in METHODS.items() if method.trains]
    assert [row["what"].split(",")[0] for row in objectives] == trained
    steps = [row for row in rows if row["name"] == "step"]
    assert len(steps) == 2
    for row in steps:
        assert row["images_per_s"] == pytest.approx(2 / row["ours_s"])
        assert row["mfu"] > 0
    compared = {row["name"] for row in rows if row["floor_s"] is not None}
    assert compared == ROWS.keys() - {"scaling"}


def test_the_machine_and_the_size_are_named(content: dict[str, Any]) -> None:
    assert content["quick"] is True
    assert content["machine"]["threads"] == 1
    assert content["machine"]["gpu"] is None
    assert content["machine"]["cpu"]
    assert torch.__version__.startswith(content["machine"]["versions"]["torch"])


def test_a_wrong_config_ends_with_one_message(tmp_path: Path) -> None:
    result = call_tool("benchmark", "step", "--config", tmp_path / "none.yaml")
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'none.yaml'}: no such config file\n"


def test_a_row_as_a_line_of_markdown() -> None:
    row = Row("objective", "logits", 0.25, 0.125, 2.2, 100.4, 1.07)
    assert format_row(row) == "| objective | logits | 250 ms | 125 ms | 2.00 | 2.20 | 100 | 1.07 |  |  |  |"
    assert (
        format_row(Row("scaling", "crop", 0.0125)) == "| scaling | crop | 12.50 ms |  |  |  |  |  |  |  |  |"
    )


def test_repetitions_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    seconds = medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU)
    assert order == ["a", "b"] * 3
    assert seconds.keys() == {"a", "b"}


def test_flops_are_two_a_multiply_and_add_forward_and_backward_compiled_or_not() -> None:
    layer = torch.nn.Linear(5, 7, bias=False)
    x = torch.randn(3, 5, requires_grad=True)
    forward = 2 * 3 * 5 * 7

    def action() -> None:
        layer(x).sum().backward()

    assert count_flops(lambda: layer(x)) == forward
    assert count_flops(action) == 3 * forward  # the gradients of x and of the weights
    layer.compile(backend="eager")
    assert count_flops(action) == 3 * forward


def test_what_is_set_beside_a_config_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = call_tool(
        "benchmark",
        "step",
        "--quick",
        *set_fields("train.amp=bf16", "train.batch_size=3"),
        "--json",
        path,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["what"] for row in rows] == [
        f"{model}, bf16, crop 32, batch 3" for model in ("deeplabv3 test_resnet", "segmenter test_vit")
    ]


def test_bytes_alive_at_once_are_counted_until_they_are_freed() -> None:
    def action() -> None:
        a = torch.zeros(1000)  # 4000 bytes
        b = a + 1  # 8000
        b.mul_(2)
        _ = b[:10], b.view(10, 100)
        del a  # 4000
        for _ in range(3):
            c = b * 2  # 8000, and 12000 while the next one is made before the last is freed
        del b, c

    assert live_bytes(action, CPU) == 12000


def test_the_backward_pass_is_counted_and_what_was_there_before_is_not() -> None:
    x = torch.randn(1000, requires_grad=True)
    # exp, and in backward the ones of the sum and the gradient; a scalar (4 bytes) lives as well.
    assert 8000 <= live_bytes(lambda: x.exp().sum().backward(), CPU) <= 12004


def test_peak_memory_is_that_of_the_action() -> None:
    peak = peak_mib(lambda: torch.ones(16 * 2**20), CPU)
    if peak is None:
        pytest.skip("this system does not say how much memory a process has taken")
    assert 63 <= peak <= 80


def test_an_iteration_of_a_method_begins_with_what_it_measures_of_the_batch(tmp_path: Path) -> None:
    iteration = Iteration(tiny(tmp_path, "a", "method=plop"), [3, 2], WORKER)
    assert iteration.learner.method.state["thresholds"].shape == (3,)
    iteration.run()
    with pytest.raises(ValueError, match=r"method\.name: ridge trains no network"):
        Iteration(tiny(tmp_path, "a", "method=ridge", "model.pretrained=true"), [3, 2], WORKER)
