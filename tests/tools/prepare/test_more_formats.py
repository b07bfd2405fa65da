"""What is wrong in files of CVAT, YOLO, Label Studio, VIA, Supervisely and Roboflow is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.annotators import WRITERS, expected, random_shape
from tests.support.more_cases import ANN, CASES, TASKS, VIA, XML, Change, edit, nothing, replace
from tests.support.prepare import NO_WORKERS, fails, read
from tools.prepare_folder import main


def write(name: str, root: Path, *kinds: str) -> list[str]:
    """Three images of a format, a shape of every kind in each."""
    rng = np.random.default_rng(1)
    drawings = {f"i{k}": [random_shape(rng, kind) for kind in kinds or WRITERS[name][1]] for k in range(3)}
    arguments = WRITERS[name][0](root, drawings)
    for stem, shapes in drawings.items():
        np.save(root / f"{stem}.npy", expected(shapes))
    return arguments


@pytest.mark.parametrize(("name", "change", "message"), CASES, ids=[f"{c[0]}-{c[2][:40]}" for c in CASES])
def test_a_wrong_file_of_another_format_is_refused_by_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Change,
    message: str,
) -> None:
    arguments = write(name, tmp_path)
    change(tmp_path)
    told = fails(capsys, *arguments, "--output", tmp_path / "out")
    assert message in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("cvat", replace(XML, "<polygon", '<tag label="pear"/><polygon'), "tags of 1 images (i0.png) are passed over"),
        ("label-studio", nothing, "project.json: 1 tasks (99) that nobody has annotated are left out"),
        ("label-studio", nothing, "project.json: 3 results of type choices are passed over"),
        ("yolo", replace("yolo/data.yaml", "nc: 2", "test: x"), "data.yaml: its test split is left out"),
        ("yolo", lambda root: (root / "yolo/train/labels/old.txt").touch(), "1 files (old.txt) without an image"),
        ("roboflow", lambda root: (root / "export/test").mkdir(), "test: is left out"),
        ("roboflow", lambda root: (root / "export/train/i1_mask.png").unlink(), "1 images (i1.png) without a mask"),
    ],
)  # fmt: skip
def test_what_another_format_holds_and_is_passed_over_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, change: Change, said: str
) -> None:
    arguments = write(name, tmp_path)
    change(tmp_path)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    assert said in capsys.readouterr().out


def as_via_1(content: Any) -> None:
    """Regions in an object, as VIA 1 wrote them, with the label in a box that is checked."""
    for entry in content["_via_img_metadata"].values():
        entry["regions"] = {str(k): region for k, region in enumerate(entry["regions"])}
        for region in entry["regions"].values():
            label = region["region_attributes"]["fruit"]
            region["region_attributes"] = {"fruit": {"other": False, label: True}, "note": "x"}


def as_local_files(content: Any) -> None:
    """Addresses of files that Label Studio serves from a folder, labels beside the regions."""
    for task in content[:-1]:
        stem = task["data"]["image"].rpartition("-")[2]
        task["data"] = {"image": f"/data/local-files/?d=server/photos/{stem}", "note": "x"}
        results = task["annotations"][0]["result"]
        for entry in list(results[:-1]):
            kind = entry["type"].removesuffix("labels")
            labels = entry["value"].pop(entry["type"])
            entry["type"] = kind
            results.append({"id": entry["id"], "type": "labels", "value": {"labels": labels}})


@pytest.mark.parametrize(
    ("name", "change", "more"),
    [
        ("via", edit(VIA, as_via_1), ["--attribute", "fruit"]),
        ("label-studio", edit(TASKS, as_local_files), []),
    ],
)
def test_older_and_other_forms_of_a_format_give_the_same_masks(
    tmp_path: Path, name: str, change: Change, more: list[str]
) -> None:
    arguments = [*write(name, tmp_path), *more, "--classes", "kiwi", "pear"]
    change(tmp_path)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    for stem in ("i0", "i1", "i2"):
        np.testing.assert_array_equal(read(tmp_path / "out", stem), np.load(tmp_path / f"{stem}.npy"))


def test_layers_of_cvat_lie_over_each_other_whatever_their_size(tmp_path: Path) -> None:
    arguments = write("cvat", tmp_path, "box", "mask")
    large = '<box label="kiwi" xtl="0" ytl="0" xbr="16" ybr="8" z_order="1"></box></image>'
    replace(XML, "</image>", large)(tmp_path)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    assert (read(tmp_path / "out", "i0") == 1).all()
    np.testing.assert_array_equal(read(tmp_path / "out", "i1"), np.load(tmp_path / "i1.npy"))


def test_holes_of_supervisely_are_background(tmp_path: Path) -> None:
    arguments = write("supervisely", tmp_path, "mask")
    hole = {"exterior": [[0, 0], [9, 0], [9, 7], [0, 7]], "interior": [[[2, 2], [4, 2], [4, 4], [2, 4]]]}
    entry = {"id": 9, "classTitle": "pear", "geometryType": "polygon", "points": hole}
    edit(ANN, lambda content: content.update(objects=[entry]))(tmp_path)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    mask = np.zeros((8, 16), np.uint8)
    mask[:, :10] = 2
    mask[2:5, 2:5] = 0
    np.testing.assert_array_equal(read(tmp_path / "out", "ds_i0"), mask)


def test_splits_of_a_source_are_kept(tmp_path: Path) -> None:
    arguments = write("roboflow", tmp_path)
    (tmp_path / "export" / "valid").mkdir()
    for path in (tmp_path / "export" / "train").glob("i2*"):
        path.rename(tmp_path / "export" / "valid" / path.name)
    text = (tmp_path / "export" / "train" / "_classes.csv").read_text()
    (tmp_path / "export" / "valid" / "_classes.csv").write_text(text)
    assert main([*arguments, "--output", str(tmp_path / "out"), *NO_WORKERS]) == 0
    assert [path.name for path in (tmp_path / "out" / "masks" / "val").iterdir()] == ["i2.png"]
