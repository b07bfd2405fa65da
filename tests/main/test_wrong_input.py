"""Wrong input is told in a message, with exit code 2, before anything is written."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.cli import call_main, set_fields, write_tiny_config
from tests.support.data import Mask, stripes, write_folder
from trainer.checks import check_parallelism
from trainer.config import load_config
from utils.distributed import Worker, process_group


def test_user_error_is_one_message_on_stderr(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    outcome = call_main("--config", str(config), "--log", "wrong", "--set", "train.lr_bass=1")
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert outcome.stderr == "error: --set: train.lr_bass: unknown key; did you mean 'lr_base'?\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["data.name=voc", "data.root=/no/such", "task=15-1"],
            ["/no/such/VOCdevkit", "no such folder", "download_voc.sh"],
        ),
        (["task=[[disc], [rign]]"], ["step 1", "unknown class 'rign'", "did you mean 'ring'"]),
        (["task=15-1"], ["15", "6 besides background"]),
        (
            ["train.lr_bass=1", "data.num_workers=-1", "model.output_stride=7"],
            ["train.lr_bass", "did you mean 'lr_base'", "data.num_workers", "-1", "model.output_stride", "7"],
        ),
        (["train.amp=fp16"], ["train.amp", "fp16 needs a GPU"]),
        (["train.accumulate=3"], ["train.batch_size", "4", "train.accumulate"]),
        (["train.accumulate=4"], ["train.batch_size", "BatchNorm"]),
        (["model.pretrained=/no/such.pth"], ["model.pretrained", "/no/such.pth"]),
        (["model.backbone=resnet1O1"], ["model.backbone", "resnet1O1", "resnet101"]),
    ],
    ids=lambda value: value[0].partition("=")[0] if "=" in value[0] else "told",
)
def test_wrong_field_is_named_before_anything_is_written(
    tmp_path: Path, overrides: list[str], expected: list[str]
) -> None:
    config = write_tiny_config(tmp_path)
    outcome = call_main("--config", str(config), "--log", "wrong", "--device", "cpu", *set_fields(*overrides))
    assert_refused(outcome, tmp_path, expected)


@pytest.mark.parametrize(("ranks", "accumulate"), [(3, 1), (2, 2), (4, 1)])
def test_batch_that_cannot_be_cut_into_ranks_and_micro_batches_is_refused(
    tmp_path: Path, ranks: int, accumulate: int
) -> None:
    config = load_config(write_tiny_config(tmp_path), [f"train.accumulate={accumulate}"])
    check_parallelism(config, Worker(torch.device("cpu")))
    with pytest.raises(ValueError, match=rf"train\.batch_size: 4 .* {ranks} ranks × {accumulate}"):
        check_parallelism(config, Worker(torch.device("cpu"), world_size=ranks))


def test_every_problem_of_a_config_file_is_told_with_the_file(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    config.write_text(
        config.read_text().replace("batch_size", "batchsize").replace("num_val:", "num_vall:", 1)
    )
    outcome = call_main("--config", str(config), "--log", "wrong")
    assert_refused(outcome, tmp_path, ["batchsize", "batch_size", "num_vall", "'num_val'"])
    assert outcome.stderr.count(str(config)) == 3  # two unknown keys, and batch_size is missing


def test_missing_config_file_is_named(tmp_path: Path) -> None:
    outcome = call_main("--config", str(tmp_path / "no.yaml"), "--log", "wrong")
    assert_refused(outcome, tmp_path, [str(tmp_path / "no.yaml"), "no such config file"])


def test_gpu_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = write_tiny_config(tmp_path)
    outcome = call_main("--config", str(config), "--log", "wrong", "--device", "cuda")
    assert_refused(outcome, tmp_path, ["--device cuda", "no GPU"])


def test_the_folder_of_a_run_of_other_code_is_refused_in_one_sentence(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    run_dir = tmp_path / "runs" / "old"
    run_dir.mkdir(parents=True)
    old = {"method": "mbs", "loss": {"output_distillation": {"weight": 10}}}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | old))
    outcome = call_main("--config", str(config), "--log", "old")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    told = f"error: {run_dir}: holds a run of another version of this code, whose config this one does not read (loss)"
    assert outcome.stderr.startswith(told)
    assert outcome.stderr.count("\n") == 1


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for device in ("auto", "cuda"):
        for local_rank in "012":  # every process raises alike: none waits for the others
            monkeypatch.setenv("LOCAL_RANK", local_rank)
            with pytest.raises(ValueError, match=r"3 processes, but 2 GPUs"), process_group(device):
                pass


class TestWrongFolder:
    """A data set of one's own with something wrong in it."""

    def train(
        self, tmp_path: Path, task: str = "[[pear], [kiwi]]", overrides: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        config = write_tiny_config(tmp_path)
        overrides = ["data.name=folder", f"data.root={tmp_path / 'data'}", f"task={task}", *overrides]
        arguments = ["--config", str(config), "--log", "wrong", *set_fields(*overrides)]
        return call_main(*arguments)

    def write(self, tmp_path: Path, **more: Mask) -> Path:
        masks = {f"img{i}": stripes(0, 1, 2, height=32, width=32) for i in range(4)} | more
        return write_folder(tmp_path / "data", ["pear", "kiwi", "fig"], masks, masks)

    def test_image_without_mask(self, tmp_path: Path) -> None:
        mask = self.write(tmp_path) / "masks" / "train" / "img2.png"
        mask.unlink()
        assert_refused(self.train(tmp_path), tmp_path, [str(mask), "mask is missing"])

    @pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
    def test_id_out_of_range_in_a_mask_of_either_split(self, tmp_path: Path, split: str, other: str) -> None:
        data = self.write(tmp_path, odd=stripes(0, 1, 9, height=32, width=32))
        (data / "masks" / other / "odd.png").unlink()
        (data / "images" / other / "odd.jpg").unlink()
        expected = [str(data / "masks" / split / "odd.png"), "found ids [9]", "allowed are 0 to 3"]
        assert_refused(self.train(tmp_path), tmp_path, expected)

    @pytest.mark.parametrize("library", ["mmcv", "cv2"])
    def test_opencv_that_cannot_be_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
    ) -> None:
        self.write(tmp_path)
        real_import = builtins.__import__

        def failing_import(name: str, *arguments: Any, **options: Any) -> Any:
            if name.partition(".")[0] == library:
                raise ImportError("libGL.so.1: cannot open shared object file")
            return real_import(name, *arguments, **options)

        for name in [name for name in sys.modules if name.partition(".")[0] in ("mmcv", "cv2")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", failing_import)
        outcome = self.train(tmp_path)
        assert_refused(outcome, tmp_path, ["libGL.so.1: cannot open shared object file", "apt-get install"])
        assert outcome.stderr.count("\n") == 1

    def test_step_without_image(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        outcome = self.train(tmp_path, task="[[pear], [fig]]")
        assert_refused(outcome, tmp_path, ["step 1 (fig)", "no training image"])

    def test_both_lists_of_images_are_judged(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        lists = ["data.train_ids=/no/train.txt", "data.val_ids=/no/val.txt"]
        outcome = self.train(tmp_path, overrides=lists)
        assert_refused(outcome, tmp_path, ["data.train_ids: /no/train.txt", "data.val_ids: /no/val.txt"])

    @pytest.mark.parametrize(("split", "after"), [("train", "img0 img1 img3"), ("val", "img2 img1 img0")])
    def test_a_run_does_not_go_on_with_other_images_than_it_has_begun_with(
        self, tmp_path: Path, split: str, after: str
    ) -> None:
        self.write(tmp_path)
        ids = tmp_path / "ids.txt"
        ids.write_text("img0\nimg1\nimg2\n")
        overrides = [f"data.{split}_ids={ids}"]
        assert self.train(tmp_path, overrides=overrides).returncode == 0
        run_dir = tmp_path / "runs" / "wrong"
        assert (run_dir / "image_ids" / f"{split}.txt").read_text() == ids.read_text()
        (run_dir / "checkpoints" / "step_1.pth").unlink()
        ids.write_text("\n".join(after.split()))
        outcome = self.train(tmp_path, overrides=overrides)
        assert (outcome.returncode, outcome.stderr.count("error: ")) == (2, 1)
        told = "1 are missing, such as 'img2' and 1 are new, such as 'img3'"
        for text in (
            f"data.{split}_ids ({ids})",
            told if split == "train" else "they stand in another order",
        ):
            assert text in outcome.stderr
        assert not (run_dir / "checkpoints" / "step_1.pth").exists()
        ids.write_text("img0\nimg1\nimg2\n")
        assert self.train(tmp_path, overrides=overrides).returncode == 0

    def test_missing_classes(self, tmp_path: Path) -> None:
        path = self.write(tmp_path) / "classes.txt"
        path.unlink()
        assert_refused(self.train(tmp_path), tmp_path, [str(path), "no such file"])


def assert_refused(outcome: subprocess.CompletedProcess[str], folder: Path, expected: list[str]) -> None:
    """Exit code 2 and a message with all that is expected, and no folder of a run."""
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert "error: " in outcome.stderr
    assert [text for text in expected if text not in outcome.stderr] == []
    assert not (folder / "runs" / "wrong").exists()
