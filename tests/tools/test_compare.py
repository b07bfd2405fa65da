"""tools/compare.py: a run beside published rows, in each row's way of counting, and how it tells what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.published import write_finished_run
from tools.compare import main

HITS = [50_000] + [700] * 15 + [300] * 5
MISSED = 15 * 300 + 5 * 700
WITHOUT = (15 * 70 + 5 * 30) / 20
BACKGROUND = 100 * HITS[0] / (HITS[0] + MISSED)
PLOP_S_RECIPE = (
    *("method=plop", "train.num_epochs=30", "train.batch_size=24", "train.lr_base=0.01"),
    *("train.lr_incremental=0.001", "train.crop_size=512", "train.nesterov=true"),
)


def compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """The comparisons as JSON."""
    assert main([*map(str, arguments), "--format", "json", "--rows", "0"]) == 0
    content: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return content


def rows_of(content: list[dict[str, Any]], method: str, paper: str) -> list[dict[str, Any]]:
    return [row for row in content[0]["rows"] if (row["method"], row["paper"]) == (method, paper)]


def test_a_run_s_figures_are_those_of_each_row_s_way_of_counting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = compare(capsys, write_finished_run(tmp_path / "run", HITS))
    (plop,) = rows_of(content, "PLOP", "2011.11390")
    assert plop["published"] == {"base": 65.12, "incremental": 21.11, "all": 54.64}
    assert plop["here"]["all"]["mean"] == pytest.approx((20 * WITHOUT + BACKGROUND) / 21)
    assert plop["here"]["base"]["mean"] == pytest.approx((15 * 70 + BACKGROUND) / 16)
    (mib,) = rows_of(content, "MiB", "2002.00718")
    assert mib["background_counts"] == {"base": "no", "all": "no"}
    assert mib["here"]["all"]["mean"] == pytest.approx(WITHOUT)
    assert [mib["here"][group]["mean"] for group in ("base", "incremental")] == pytest.approx([70, 30])


def test_rows_that_count_pixels_which_the_run_left_out_get_the_figures_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_finished_run(tmp_path / "run", HITS)
    results = json.loads((run / "results.json").read_text())
    last = results["steps"][-1]
    with_them = {name: iou / 2 for name, iou in last["per_class_iou"].items()}
    last["per_class_iou_of"] = {"plop": with_them, "mbs": with_them}
    (run / "results.json").write_text(json.dumps(results))
    content = compare(capsys, run)
    (plop,), (mib,) = rows_of(content, "PLOP", "2011.11390"), rows_of(content, "MiB", "2002.00718")
    assert plop["here"]["all"]["mean"] == pytest.approx((20 * WITHOUT + BACKGROUND) / 21 / 2)
    assert plop["here"]["incremental"]["mean"] == pytest.approx(15)
    assert mib["here"]["all"]["mean"] == pytest.approx(WITHOUT)


def test_a_row_of_unknown_counting_gets_both_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_finished_run(tmp_path / "run", HITS)
    content = compare(capsys, run)
    unknown = [row for row in content[0]["rows"] if row["background_counts"]["all"] == "unknown"]
    assert unknown
    both = [(20 * WITHOUT + BACKGROUND) / 21, WITHOUT]
    assert all(row["here"]["all"]["mean"] == pytest.approx(both) for row in unknown)
    assert main([str(run), "--rows", "0"]) == 0
    assert "whether background counts in all is not known" in capsys.readouterr().out


def test_classes_that_are_never_hit_are_left_out_where_the_authors_leave_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = [*HITS[:-1], 0]
    run = write_finished_run(tmp_path / "run", hits, "task='10-1'", num_base=11)
    (mbs,) = compare(capsys, run, "--method", "mbs")[0]["rows"]
    background = 100 * HITS[0] / (HITS[0] + MISSED + 300)
    assert mbs["drops_zero_iou"]
    assert mbs["here"]["all"]["mean"] == pytest.approx((15 * 70 + 4 * 30 + background) / 20)


def test_every_difference_is_named_and_the_nearest_protocol_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_finished_run(tmp_path / "run", HITS, *PLOP_S_RECIPE, "memory.size=100")
    content = compare(capsys, run)
    distances = [row["distance"] for row in content[0]["rows"]]
    assert distances == sorted(distances)
    (plop,) = rows_of(content, "PLOP", "2011.11390")
    told = {d["aspect"]: (d["theirs"], d["ours"]) for d in plop["differences"]}
    assert told == {
        "memory": ("0 images", "100 images"),
        "weights": ("ImageNet, in-place ABN", "ImageNet, torchvision"),
    }
    (ssul,) = rows_of(content, "SSUL-M", "2106.11562")
    told = {d["aspect"]: (d["theirs"], d["ours"]) for d in ssul["differences"]}
    assert told["checkpoint"] == (
        "best on the new classes of the validation split, which is the test split",
        "last",
    )
    assert (told["epochs"], told["batch"]) == (("50", "30"), ("32", "24"))
    (rerun,) = rows_of(content, "PLOP (author re-run)", "2011.11390")
    assert {d["aspect"] for d in rerun["differences"] if d["theirs"] is None} == {"recipe"}
    segformer = next(row for row in content[0]["rows"] if row["backbone"] == "mit_b2")
    assert {d["aspect"] for d in segformer["differences"]} >= {"backbone", "decoder"}


def test_a_part_of_the_images_and_another_class_order_are_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_finished_run(tmp_path / "run", HITS, "data.train_ids=some.txt", "data.long_side=320")
    results = json.loads((run / "results.json").read_text())
    names = [*results["class_names"]]
    names[1:3] = reversed(names[1:3])
    results["class_names"] = names
    for step in results["steps"]:
        iou = step["per_class_iou"]
        step["per_class_iou"] = {name: iou[name] for name in names if name in iou}
    (run / "results.json").write_text(json.dumps(results))
    rows = compare(capsys, run)[0]["rows"]
    for row in rows:
        assert {"images", "image size", "class order"} <= {d["aspect"] for d in row["differences"]}


def test_seeds_are_one_entry_and_other_configs_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = [HITS[0], *(hit + 10 for hit in HITS[1:])]
    runs = [
        write_finished_run(tmp_path / "a", HITS),
        write_finished_run(tmp_path / "b", better, "seed=1"),
        write_finished_run(tmp_path / "c", HITS, "train.num_epochs=1"),
    ]
    first, second = compare(capsys, *runs)
    assert (first["runs"], second["runs"]) == ([str(runs[0]), str(runs[1])], [str(runs[2])])
    (mib,) = rows_of([first], "MiB", "2002.00718")
    assert mib["here"]["all"] == pytest.approx({"mean": WITHOUT + 0.5, "std": 0.5**0.5})


def test_joint_training_stands_beside_offline_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = compare(capsys, write_finished_run(tmp_path / "run", HITS, "method=joint"))[0]["rows"]
    assert rows
    assert {row["setting"] for row in rows} == {"offline"}


def test_runs_that_have_not_seen_the_same_images_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, same, other = ["0" * 64] * 6, ["0" * 64] * 6, ["0" * 64] * 5 + ["1" * 64]
    runs = [
        str(write_finished_run(tmp_path / name, HITS, f"seed={seed}", digests=digests))
        for seed, (name, digests) in enumerate({"a": first, "b": same, "c": other}.items())
    ]
    assert main([*runs[:2], "--method", "MBS"]) == 0
    assert "have not seen" not in capsys.readouterr().out
    assert main([*runs, "--method", "MBS"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == (
        "voc 15-1 overlap: these runs have not seen the same training images in step 5: "
        f"{runs[0]}, {runs[1]} (000000000000) | {runs[2]} (111111111111)"
    )


def test_markdown_appendix_and_figure_show_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_finished_run(tmp_path / "run", HITS))
    assert main([run, "--format", "md", "--method", "PLOP", "--rows", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## mbs on voc 15-1 (overlap), seed 0"
    assert len([line for line in lines if line.startswith("| PLOP")]) == 2
    assert any(line.endswith("are left out; --rows 0 shows all.") for line in lines)
    plot = tmp_path / "plots" / "compared.png"
    assert main([run, "--format", "appendix", "--plot", str(plot)]) == 0
    block = capsys.readouterr().out
    assert "| background counts nowhere (`mib`) | 70.0 | 30.0 | 60.0 |" in block
    assert "num_epochs 60" in block
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "nosuch"], "docs/published.tsv has no such method; it has BARM"),
        (["--rows", "-1"], "--rows -1: expected 0"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(write_finished_run(tmp_path / "run", HITS)), *arguments])
    assert told in capsys.readouterr().err


def test_a_run_whose_task_is_not_finished_is_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_finished_run(tmp_path / "run", HITS)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "steps": results["steps"][:2]}))
    with pytest.raises(SystemExit):
        main([str(run)])
    assert "none of these runs has finished its task" in capsys.readouterr().err
    assert main([str(finished_run)]) == 0
    assert "no published rows" in capsys.readouterr().out
