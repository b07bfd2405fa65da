"""tools/summarize.py: means over seeds by hand, the best in bold, incomplete runs named, every format."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.published import write_finished_run
from tools.summarize import main
from tools.summary.figure import name_rows, style
from tools.summary.groups import summarize
from tools.summary.runs import read_run
from utils.report.plots import draw_per_class_iou


def write_run(
    folder: Path, method: str, seed: int, miou: float, forgetting: float | None = 0.1, num_steps: int = 2
) -> Path:
    """Write a run of a task of two steps whose every mIoU is `miou`, without background half of it."""
    scores = dict.fromkeys(("miou_all", "miou_old", "miou_new", "hiou"), miou)
    names = ["background", "disc", "ring"]
    steps: list[dict[str, Any]] = [
        {
            **scores,
            "forgetting": forgetting,
            "step": step,
            "without_background": {score: value / 2 for score, value in scores.items()},
            "new_classes": names[1 + step : 2 + step],
            "per_class_iou": dict.fromkeys(names[: 2 + step], miou),
        }
        for step in range(num_steps)
    ]
    results = {"method": method, "task": "1-1", "setting": "overlap", "dataset": "shapes", "seed": seed}
    run = folder / f"{method}_{seed}"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({**results, "class_names": names, "steps": steps}))
    config = {"log": run.name, "train": {"amp": "bf16" if method == "mbs" else "off"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two seeds of mbs at 0.5 and 0.6, one finished and one unfinished of finetune."""
    return [
        str(write_run(tmp_path, "mbs", 0, 0.5)),
        str(write_run(tmp_path, "mbs", 1, 0.6, forgetting=0.3)),
        str(write_run(tmp_path, "finetune", 0, 0.25)),
        str(write_run(tmp_path, "finetune", 1, 0.9, num_steps=1)),
    ]


def test_markdown_has_means_and_deviations_of_seeds_and_the_best_in_bold(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "class_index"
    other.mkdir()
    (tmp_path / "mbs_1" / "results.json").rename(tmp_path / "kept")
    assert main([*runs, str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == f"- {runs[1]} (0 steps finished)"
    (tmp_path / "kept").rename(tmp_path / "mbs_1" / "results.json")
    assert main([*runs, str(other), "--group-by", "method"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| method | runs | all | old | new | hIoU | forgetting | all w/o bg |")
    high, low = "**55.0 ± 7.1**", "**27.5 ± 3.5**"  # std of 0.5 and 0.6: 0.1 / √2
    assert (
        lines[2]
        == f"| mbs | 2 | {high} | {high} | {high} | {high} | 20.0 ± 14.1 | " + " | ".join([low] * 4) + " |"
    )
    assert lines[3].startswith("| finetune | 1 | 25.0 | 25.0 | 25.0 | 25.0 | **10.0** | 12.5 |")
    assert lines[-1] == f"- {runs[3]} (1 steps finished)"


def test_csv_and_json_hold_fractions_and_nothing_else(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*runs, "--format", "csv"])
    (mbs, finetune) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (mbs["method"], mbs["task"], mbs["runs"]) == ("mbs", "1-1", "2")
    assert float(mbs["miou_all_mean"]) == pytest.approx(0.55)
    assert float(mbs["miou_all_std"]) == pytest.approx(0.1 / 2**0.5)
    assert float(mbs["without_background.hiou_mean"]) == pytest.approx(0.275)
    assert finetune["miou_all_std"] == ""
    main([*runs, "--format", "json"])
    captured = capsys.readouterr()
    groups = json.loads(captured.out)
    assert groups[0]["runs"] == runs[:2]
    assert groups[1]["scores"]["forgetting"] == {"mean": pytest.approx(0.1), "std": None}
    assert runs[3] in captured.err


def test_latex_escapes_and_bolds(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*runs, "--format", "latex", "--group-by", "method,train.amp"])
    text = capsys.readouterr().out
    assert r"\begin{tabular}{ll" in text
    assert r"mbs & bf16 & 2 & 55.0 $\pm$ 7.1 &" in text
    assert r"finetune & off & 1 & 25.0 &" in text, (
        "rows of another field are no rivals, and a lone row is not the best"
    )
    main([*runs, "--format", "latex", "--group-by", "method"])
    assert r"mbs & 2 & \textbf{55.0 $\pm$ 7.1} &" in capsys.readouterr().out


def test_a_score_that_a_run_lacks_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(write_run(tmp_path, "mbs", 0, 0.5, forgetting=None))])
    assert "| – |" in capsys.readouterr().out


def test_a_row_whose_runs_differ_in_more_than_the_seed_is_named_and_none_that_does_not(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*runs, "--group-by", "setting"])
    named = [line for line in capsys.readouterr().out.splitlines() if "mixes" in line]
    assert named == ["overlap mixes runs that differ in method, train.amp; see --group-by"]
    main([*runs, "--group-by", "method"])
    assert "mixes" not in capsys.readouterr().out


def test_a_variant_is_a_row_by_its_name_and_the_best_is_told_within_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for task, variant, miou in (("1-1", "", 0.5), ("1-1", "without x", 0.4), ("2-1", "without x", 0.3)):
        (tmp_path / f"{task}{variant}").mkdir()
        run = write_run(tmp_path / f"{task}{variant}", "mbs", 0, miou)
        results = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps(results | {"task": task}))
        (run / "config.yaml").write_text(yaml.safe_dump({"variant": variant}))
        folders.append(str(run))
    main([*folders, "--group-by", "variant,task"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[:4] for line in lines] == [
        ["| mbs", "1-1", "1", "**50.0**"],
        ["| without x", "1-1", "1", "40.0"],
        ["| without x", "2-1", "1", "30.0"],  # without a rival
    ]


def test_the_upper_bound_is_not_the_best(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*runs, str(write_run(tmp_path, "joint", 0, 0.8)), "--group-by", "method"])
    mbs, _, joint = capsys.readouterr().out.splitlines()[2:5]
    assert mbs.startswith("| mbs | 2 | **55.0")
    assert joint.startswith("| joint | 1 | 80.0 | 80.0 |")


def test_where_takes_runs_whose_fields_match_in_the_order_of_the_alternatives(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def groups(where: str) -> list[tuple[str, str]]:
        main([*runs, "--group-by", "log", "--format", "csv", "--where", where])
        return [(row["log"], row["runs"]) for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]

    assert groups("log=*_0") == [("mbs_0", "1"), ("finetune_0", "1")]
    assert groups("setting=over*, log=finetune_?|mbs_[1-9]") == [("finetune_0", "1"), ("mbs_1", "1")]
    assert groups("train.amp=bf16,seed=0") == [("mbs_0", "1")]
    assert groups("log=mbs_1|mbs_*") == [("mbs_1", "1"), ("mbs_0", "1")], "a run is taken once"


def test_a_condition_that_cannot_be_met_is_told(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "seed": "--where seed: expected FIELD=PATTERN",
        "seed=0,": "--where seed=0,: expected FIELD=PATTERN",
        "colour=red": f"--where colour: {runs[0]} has no such field",
        "seed=7": "--where seed=7: none of 4 runs matches",
    }
    for where, expected in wrong.items():
        with pytest.raises(SystemExit) as caught:
            main([*runs, "--where", where])
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err


def test_a_run_without_a_field_that_others_have_does_not_match(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(runs[0]) / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "method.selective: false\n", encoding="utf-8")
    assert main([*runs, "--where", " method.selective = False", "--format", "json", "--group-by", "log"]) == 0
    assert [row["log"] for row in json.loads(capsys.readouterr().out)] == [Path(runs[0]).name]


def test_a_run_without_results_is_found_by_its_method_and_told_to_be_incomplete(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text(
        "method: {name: mbs}\ndata: {name: shapes}\nseed: 2\n", encoding="utf-8"
    )
    main([*runs, str(begun), "--where", "method=mbs,dataset=shapes"])
    assert f"- {begun} (0 steps finished)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("seed", "x", "seed: expected a number, found 'x'"),
        ("task", ["a"], r"task: expected a text, found \['a'\]"),
        ("class_names", "x", "class_names: Input should be a valid list, found 'x'"),
        ("miou", 17.0, r"steps\.1\.miou_all: .* less than or equal to 1, found 17\.0"),
    ],
)
def test_results_of_a_wrong_form_are_named(runs: list[str], field: str, value: Any, told: str) -> None:
    path = Path(runs[0]) / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    if field == "miou":
        results["steps"][-1]["miou_all"] = value
    else:
        results[field] = value
    path.write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"results\.json: not the results of a run .*{told}"):
        read_run(Path(runs[0]))


def test_rows_of_a_figure_are_told_apart_by_name_colour_and_marker(runs: list[str]) -> None:
    rows = summarize([read_run(Path(run)) for run in runs], ["task", "method"])
    assert name_rows(rows) == (["mbs", "finetune"], "1-1")
    assert len({style(index) for index in range(20)}) == 20


def test_the_figure_is_a_png(runs: list[str], tmp_path: Path) -> None:
    main([*runs, "--plot", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_classes_is_of_one_finished_run(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "classes.png"
    for given in (runs, runs[3:]):
        with pytest.raises(SystemExit):
            main([*given, "--plot-classes", str(path)])
        assert f"shows one finished run, found {len(given)} runs" in capsys.readouterr().err
    assert not path.exists()
    main([*runs, "--where", "log=mbs_1", "--plot-classes", str(path)])
    results = json.loads((Path(runs[1]) / "results.json").read_text(encoding="utf-8"))
    assert path.read_bytes() == draw_per_class_iou(results)


def test_wrong_folders_and_fields_are_named(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text('{"steps": 3}')
    (tmp_path / "bad" / "config.yaml").write_text("seed: 0")
    (tmp_path / "empty").mkdir()
    wrong = {
        "none: no such folder": [str(tmp_path / "none")],
        "none of these is the folder of a run": [str(tmp_path / "empty")],
        "bad/results.json": [str(tmp_path / "bad")],
        "colour": [*runs, "--group-by", "colour"],
    }
    for expected, arguments in wrong.items():
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err


def test_files_beside_the_runs_are_passed_over_and_fields_may_have_blanks_between(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*runs, "--group-by", "method,task"])
    expected = capsys.readouterr().out
    (tmp_path / "notes.txt").write_text("seed 3 ran beside other work")
    assert main([*runs, str(tmp_path / "notes.txt"), "--group-by", "method, task"]) == 0
    assert capsys.readouterr().out == expected


def test_published_rows_stand_marked_in_the_columns_of_their_counting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_finished_run(tmp_path / "run", [50_000] + [700] * 15 + [300] * 5))
    assert main([run, "--published", "--method", "mib", "--group-by", "method"]) == 0
    rows, told = capsys.readouterr().out.split("\n\n", 1)
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in rows.splitlines()}
    # Published without background: under 'w/o bg', where runs compete among themselves only, and here is one.
    mib = cells["| MiB (2002.00718) †"]
    assert (mib[0], mib[1], mib[6]) == ("published", "–", "29.7")
    assert cells["| mbs"][6] == "60.0"
    assert cells["| MiB (2002.00718 (re-implemented in PLOP 2011.11390)) †"][1] == "29.3"
    assert "† published (docs/published.tsv" in told
    uncounted = [line for line in told.splitlines() if line.startswith("- MiB")]
    assert any("all 32.2; whether background counts in all is not known" in line for line in uncounted)
    with pytest.raises(SystemExit):
        main([run, "--method", "mib"])
    assert "add --published" in capsys.readouterr().err


def test_runs_that_have_not_seen_the_same_images_are_named(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for run, digest in zip(runs[:2], ("a" * 64, "b" * 64), strict=True):
        path = Path(run) / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "val_images_sha256": digest}))
    assert main(runs) == 0
    told = f"{runs[0]} (aaaaaaaaaaaa) | {runs[1]} (bbbbbbbbbbbb)"
    assert f"these runs have not seen the same validation images: {told}" in capsys.readouterr().out
