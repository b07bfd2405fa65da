"""init_from: a base step that others share is fetched once, checked and kept; tools/publish.py makes one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import trainer.shared_base
from models import load_model
from tests.support.downloads import Server
from tests.support.training import assert_equal_states, tiny, train, weights
from tests.tools.conftest import server as server  # the fixture
from tools.publish import main as publish
from tools.published.share import _without_places
from trainer.checkpoint import checkpoint_path, load_checkpoint
from trainer.config import Config
from trainer.shared_base import base_file, read_registry


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FETCH_BACKOFF_SECONDS", "0")
    before = torch.hub._hub_dir
    torch.hub._hub_dir = None
    yield
    torch.hub._hub_dir = before


def register(entries: dict[str, object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "base_models.json"
    path.write_text(json.dumps(entries))
    monkeypatch.setattr(trainer.shared_base, "read_registry", lambda: read_registry(path))


def publish_base(finished_run: Path, folder: Path, *arguments: str) -> tuple[bytes, dict[str, object], str]:
    """The file, the entry and the card of the run's base step."""
    assert publish([str(finished_run), "--output", str(folder), "--name", "tiny_base", *arguments]) == 0
    (entry,) = json.loads((folder / "tiny_base.json").read_text()).values()
    return (folder / "tiny_base.pth").read_bytes(), entry, (folder / "tiny_base.md").read_text()


def test_the_registry_of_this_repository_starts_empty() -> None:
    assert read_registry() == {}


def test_a_published_base_is_fetched_once_by_its_name_and_trained_on(
    finished_run: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/base.pth"
    content, entry, _ = publish_base(finished_run, tmp_path, "--dtype", "float32", "--url", url)
    server.files["/base.pth"] = content
    register({"tiny_base": entry}, tmp_path, monkeypatch)
    local = tiny(tmp_path, "local", f"init_from={checkpoint_path(finished_run, 0)}")
    named = tiny(tmp_path, "named", "init_from=tiny_base")
    by_address = tiny(tmp_path, "by_address", f"init_from={url}#sha256={entry['sha256']}")
    train(local)
    for config in (named, by_address):
        train(config)
        assert_equal_states(weights(config, 1), weights(local, 1))
    assert len(server.requests) == 1


def test_a_file_of_other_bytes_is_refused(
    finished_run: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, entry, _ = publish_base(finished_run, tmp_path, "--url", f"{server.url}/base.pth")
    server.files["/base.pth"] = content[:-1] + b"x"
    register({"tiny_base": entry}, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=rf"(?s)^init_from: .*expected sha256 {entry['sha256']}, found"):
        base_file("tiny_base")
    with pytest.raises(ValueError, match=r"(?s)^init_from: .*HTTP 404"):
        base_file(f"{server.url}/other.pth")


def test_a_name_that_nobody_has_published_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"'nosuch' is no file, and no name in docs/base_models\.json \(it has none"
    ):
        base_file("nosuch")
    assert base_file("runs/a/checkpoints/step_0.pth") == Path("runs/a/checkpoints/step_0.pth")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([], "expected a mapping"),
        ({"a": {}}, "a lacks url"),
        ({"a": dict.fromkeys(trainer.shared_base.ENTRY, "x")}, "64"),
    ],
)
def test_a_wrong_registry_is_told_with_its_file(entries: object, told: str, tmp_path: Path) -> None:
    (tmp_path / "bases.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=rf"bases\.json: not a list of base steps \(.*{told}"):
        read_registry(tmp_path / "bases.json")


def test_the_slim_file_halves_the_weights_and_names_no_place_of_this_machine(
    finished_run: Path, tmp_path: Path
) -> None:
    content, entry, card = publish_base(finished_run, tmp_path, "--licence", "CC-BY-4.0")
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["classes"] == ["background", "ring", "disc"]
    whole, half = (load_checkpoint(p) for p in (checkpoint_path(finished_run, 0), tmp_path / "tiny_base.pth"))
    assert str(finished_run.parent) in json.dumps(whole["config"])
    assert str(finished_run.parent) not in json.dumps([half["config"], entry]) + card
    for name, weight in whole["model"].items():
        kept = half["model"][name]
        assert kept.dtype == (torch.float16 if weight.dtype == torch.float32 else weight.dtype)
        torch.testing.assert_close(kept.to(weight.dtype), weight, rtol=1e-3, atol=1e-4)
    model, info = load_model(tmp_path / "tiny_base.pth")
    assert info.class_names == ("background", "ring", "disc")
    assert next(model.parameters()).dtype == torch.float32
    assert "Licence of the weights: CC-BY-4.0" in card
    assert "| ring | " in card


def test_a_run_starts_from_the_halved_file(finished_run: Path, tmp_path: Path) -> None:
    publish_base(finished_run, tmp_path)
    config: Config = tiny(tmp_path, "half", f"init_from={tmp_path / 'tiny_base.pth'}")
    assert len(train(config)["steps"]) == 2
    assert all(x.dtype != torch.float16 for x in weights(config, 1).values())


def test_no_field_that_names_a_place_stays_in_a_published_config(finished_run: Path, tmp_path: Path) -> None:
    places = ["image_lists", "train_ids", "val_ids", "saliency", "val_root_old"]
    config = load_checkpoint(checkpoint_path(finished_run, 0))["config"]
    config["data"] |= {name: f"/home/me/{name}" for name in ("root", *places)}
    assert "/home/me" not in json.dumps(_without_places(config))


def test_a_published_file_is_replaced_only_if_asked(finished_run: Path, tmp_path: Path) -> None:
    publish_base(finished_run, tmp_path)
    before = (tmp_path / "tiny_base.pth").read_bytes()
    arguments = [str(finished_run), "--output", str(tmp_path), "--name", "tiny_base", "--dtype", "float32"]
    with pytest.raises(SystemExit):
        publish(arguments)
    assert (tmp_path / "tiny_base.pth").read_bytes() == before
    assert publish([*arguments, "--overwrite"]) == 0
    own = ["--output", str(finished_run / "checkpoints"), "--name", "step_0", "--overwrite"]
    with pytest.raises(SystemExit):  # a checkpoint of the run itself
        publish([str(finished_run), *own])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--step", "5"], "--step 5: .* has finished 2 steps, 0 to 1"),
        (["--url", "here"], "--url here: expected an address"),
    ],
)
def test_publish_says_what_is_wrong(
    arguments: list[str], told: str, finished_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        publish([str(finished_run), "--output", str(tmp_path), *arguments])
    assert re.search(told, capsys.readouterr().err)
