"""trainer/checkpoint.py: what is saved comes back bit for bit, and damaged or foreign files are named."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from models import SegmentationModel
from tests.support.cli import write_tiny_config
from trainer.checkpoint import (
    checkpoint_path,
    digest,
    load_checkpoint,
    new_model,
    restore_model,
    save_checkpoint,
)
from trainer.config import Config, load_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(write_tiny_config(tmp_path))


@pytest.fixture
def model(config: Config) -> SegmentationModel:
    torch.manual_seed(0)
    model = new_model(config, [3])
    model.grow(2)
    model.train()(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))  # statistics move
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return checkpoint_path(tmp_path / "run", 1)


def save(path: Path, model: SegmentationModel, **more: Any) -> None:
    save_checkpoint(
        path, model, **{"step": 1, "num_classes": [3, 2], "class_names": list("abcde"), "config": {}, **more}
    )


def test_checkpoints_lie_in_the_folder_of_the_run() -> None:
    assert checkpoint_path(Path("runs/a"), 3) == Path("runs/a/checkpoints/step_3.pth")


def test_a_model_comes_back_bit_for_bit(config: Config, model: SegmentationModel, path: Path) -> None:
    save(path, model)
    restored = restore_model(config, load_checkpoint(path))
    ours, theirs = model.state_dict(), restored.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(restored.eval()(images).logits, model.eval()(images).logits)


def test_the_description_comes_back_and_the_file_holds_no_code(model: SegmentationModel, path: Path) -> None:
    description = {"class_names": list("vwxyz"), "seconds": 1.5, "config": {"train": {"lr": 0.1}}}
    save(path, model, **description)
    torch.load(path, weights_only=True)
    checkpoint = load_checkpoint(path)
    assert checkpoint.items() >= {"step": 1, "num_classes": [3, 2], **description}.items()


def test_a_failure_while_writing_leaves_the_old_file(
    model: SegmentationModel, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, model)
    before = path.read_bytes()

    def fail(_: object, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save(path, model)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_checkpoint_is_an_error_that_names_it(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"step_1\.pth: no such checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused_by_name(model: SegmentationModel, path: Path, kept: float) -> None:
    save(path, model)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"step_1\.pth: not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"hello", b"{}\n", b"\x89PNG\r\n\x1a\n", b"\x00" * 100, b"PK\x03\x04 no zip"]
)
def test_a_file_of_another_kind_is_refused_by_name(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_1\.pth: not a readable checkpoint"):
        load_checkpoint(path)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(_RunsCode(), protocol=2))
    with pytest.raises(ValueError, match=r"step_1\.pth: not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"model": _RunsCode(), "step": 0, "num_classes": [3]}, path)
    with pytest.raises(ValueError, match=r"step_1\.pth: not a readable checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {}}, [1, 2], {"model": {}, "step": 1}, {"model": {}, "step": 1, "num_classes": [3]}],
)
def test_a_checkpoint_of_other_code_is_refused_by_name(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"step_1\.pth: not a checkpoint of this code"):
        load_checkpoint(path)


@pytest.mark.parametrize("override", ["model.channels=16", "model.backbone=test_byobnet"])
def test_weights_that_do_not_fit_the_config_are_refused_in_one_line(
    model: SegmentationModel, path: Path, tmp_path: Path, override: str
) -> None:
    save(path, model)
    other = load_config(write_tiny_config(tmp_path), [override])
    with pytest.raises(ValueError, match=r"checkpoint of step 1 does not fit the configured model") as caught:
        restore_model(other, load_checkpoint(path))
    assert "\n" not in str(caught.value)


def test_class_counts_that_do_not_fit_the_weights_are_refused(
    config: Config, model: SegmentationModel, path: Path
) -> None:
    save(path, model, num_classes=[5])
    with pytest.raises(ValueError, match=r"checkpoint of step 1 does not fit the configured model: .*heads"):
        restore_model(config, load_checkpoint(path))


def test_a_checkpoint_of_an_older_version_is_refused_with_what_to_do(path: Path) -> None:
    old = {"model": {}, "num_classes": [2], "class_names": ["background", "disc"], "step": 0, "config": {}}
    path.parent.mkdir(parents=True)
    torch.save(old | {"digest": digest(old)}, path)
    with pytest.raises(
        ValueError, match=r"written by another version .* lacks method_state, parts.*train it"
    ):
        load_checkpoint(path)
