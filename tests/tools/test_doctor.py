"""tools/doctor.py: what a machine lacks, with a fix for each problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import set_fields, write_tiny_config
from tests.support.data import stripes, write_folder
from tools import doctor
from tools.doctor import Finding, check_packages, check_weights, main


def test_packages_are_compared_with_the_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.15.0+cpu", "timm": "1.0.3", "pillow": "10.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    requirements = "torch>=2.6\ntimm>=1.0.15\npillow>=10\nmmcv-lite>=2.2\n"
    assert list(check_packages(requirements)) == [
        Finding("torch", "2.15.0+cpu"),
        Finding("timm", "1.0.3", "needs 1.0.15: `pip install -U 'timm>=1.0.15'`"),
        Finding("pillow", "10.0"),
        Finding("mmcv-lite", "missing", "`pip install -r requirements.txt`"),
    ]


@pytest.mark.parametrize(
    "error", [ImportError("undefined symbol"), RuntimeError("operator torchvision::nms does not exist")]
)
def test_a_package_that_cannot_be_imported_is_a_problem_and_ends_the_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    imported = []

    def import_module(name: str) -> None:
        imported.append(name)
        if name == "torchvision":
            raise error

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    monkeypatch.setattr(doctor, "check_devices", lambda: pytest.fail("looked for devices"))
    assert main([]) == 2
    assert imported == ["torch", "torchvision"], "timm imports torchvision and would be named, too"
    lines = capsys.readouterr().out.splitlines()
    index = lines.index("torchvision              cannot be imported")
    assert lines[index + 1].endswith(
        "fix: `pip install --force-reinstall torch torchvision`, which must be of one release "
        f"({type(error).__name__}: {error})"
    )
    assert lines[-1] == "1 problem"


def test_every_required_package_is_imported_under_its_module_s_name() -> None:
    requirements = (doctor.ROOT / "requirements.txt").read_text()
    assert [finding for finding in check_packages(requirements) if finding.fix] == []


def test_an_old_python_is_a_problem_and_ends_the_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.18")
    assert main([]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "Python                   3.9.18",
        "                         fix: needs 3.10: install a newer one and make the environment with it",
        "1 problem",
    ]


def test_overrides_of_no_config_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--set", "data.root=/data/voc"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("error: --set overrides a config: give --config, too\n")


def test_the_base_step_s_checkpoint_and_wandb_are_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "check_packages", lambda _: iter(()))
    monkeypatch.setattr(doctor, "SHARED_MEMORY", 0)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    base = tmp_path / "step_0.pth"
    arguments = ["--config", str(write_tiny_config(tmp_path))]
    arguments += set_fields(f"init_from={base}", "logging.wandb=project")
    assert main(arguments) == 2
    out = capsys.readouterr().out
    assert "init_from                missing\n" in out
    assert "fix: init_from: no such file; train the base step, or set it to null\n" in out
    assert "wandb                    missing\n" in out
    assert "fix: `pip install wandb`, or set logging.wandb to null\n" in out
    assert out.endswith("2 problems\n")
    base.touch()
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name)
    assert main(arguments) == 0


def test_a_missing_package_ends_the_search_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Finding("timm", "missing", "install it")
    monkeypatch.setattr(doctor, "check_packages", lambda _: iter([missing]))
    monkeypatch.setattr(doctor, "check_devices", lambda: pytest.fail("looked for devices"))
    assert main([]) == 2
    assert capsys.readouterr().out.splitlines()[1:] == [
        "timm                     missing",
        "                         fix: install it",
        "1 problem",
    ]


def test_a_config_whose_data_and_weights_are_here_has_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "check_packages", lambda _: iter(()))
    monkeypatch.setattr(doctor, "SHARED_MEMORY", 0)
    write_folder(tmp_path / "data", ["pear"], {"a": stripes(0, 1), "b": stripes(1)}, {"c": stripes(1)})
    (tmp_path / "w.pth").touch()
    fields = ["data.name=folder", f"data.root={tmp_path / 'data'}", "task=[[pear]]"]
    fields.append(f"model.pretrained={tmp_path / 'w.pth'}")
    assert main(["--config", str(write_tiny_config(tmp_path)), *set_fields(*fields)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "data, folder train       2 images" in lines
    assert "data, folder val         1 images" in lines
    assert f"weights, test_resnet     {tmp_path / 'w.pth'}" in lines
    assert lines[-1] == "no problems"


def test_missing_data_and_weights_come_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "check_packages", lambda _: iter(()))
    monkeypatch.setattr(doctor, "SHARED_MEMORY", 0)
    fields = ["data.name=voc", f"data.root={tmp_path}", "task='15-1'", "model.pretrained=nowhere.pth"]
    assert main(["--config", str(write_tiny_config(tmp_path)), *set_fields(*fields)]) == 2
    out = capsys.readouterr().out
    assert out.count("(run `bash download_voc.sh`, or set data.root)") == 2
    assert "fix: model.pretrained: no file 'nowhere.pth'" in out
    assert out.endswith("3 problems\n")


def test_weights_that_timm_would_fetch_are_looked_for_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: f"/cache/{repo}/{name}")
    assert check_weights("resnet18", True).fix == ""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    assert "set model.pretrained=PATH, or model.pretrained=false" in check_weights("resnet18", True).fix
    assert check_weights("no_such_model", True).fix.startswith("model.backbone: timm has no such model")
    assert check_weights("resnet18.no_such_tag", True).fix.startswith(
        "model.backbone: timm has no such model"
    )
    assert check_weights("resnet18", False).fix == ""


def test_a_backbone_without_weights_in_timm_is_told_so() -> None:
    assert check_weights("beit3_giant_patch14_224", True) == Finding(
        "weights, beit3_giant_patch14_224",
        "none to be fetched",
        "model.backbone: timm has no weights for beit3_giant_patch14_224; take another backbone, or set "
        "model.pretrained=PATH, or model.pretrained=false",
    )
