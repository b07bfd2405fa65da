"""datasets/class_list.py: classes.txt and classes.yaml, and what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from datasets import class_list
from datasets.class_list import read_class_list, read_classes
from tests.support.paths import ROOT

YAML = """\
- {name: background, color: [0, 0, 0]}
- {name: road, color: [128, 64, 128]}
- {name: sign, color: [220, 220, 0]}
"""


@pytest.mark.parametrize("text", ["cat\ndog\n", "background\ncat\ndog", "\ufeffcat \r\ndog\r\n"])
def test_classes_txt_may_name_background_first_or_leave_it_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_classes(path) == ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog\n", "line 2 is blank"),
        ("background\n\ndog\n", "line 2 is blank"),
        ("cat\ndog\ncat\n", "line 3 repeats the class 'cat' of line 1"),
        ("background\ncat\ncat\n", "line 3 repeats the class 'cat' of line 2"),
        ("cat\nbackground\n", "line 2 repeats the class 'background' of id 0"),
        ("", "found 0 classes"),
        ("background\n", "found 0 classes"),
        (
            "".join(f"c{i}\n" for i in range(255)),
            "found 255 classes besides background; allowed are 1 to 254",
        ),
    ],
)
def test_a_wrong_classes_txt_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


def test_classes_yaml_wins_over_classes_txt_and_one_of_them_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"classes\.txt: no such file\. the layout"):
        read_class_list(tmp_path, "the layout")
    (tmp_path / "classes.txt").write_text("kiwi\n")
    assert read_class_list(tmp_path, "").names == ("background", "kiwi")
    (tmp_path / "classes.yaml").write_text(YAML)
    assert read_class_list(tmp_path, "").names == ("background", "road", "sign")


def test_the_list_that_the_documentation_shows_is_one(tmp_path: Path) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    ]
    (example,) = [block for block in blocks if block.startswith("- {name: background")]
    (tmp_path / "classes.yaml").write_text(example)
    classes = read_class_list(tmp_path, "")
    assert classes.names == ("background", "pear", "kiwi")
    assert dict(classes.coding.colours)[255, 255, 255] == 255


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["Input should be a valid list, found nothing", "expected a list of classes"]),
        ("- [a\n", ["not valid YAML"]),
        ("- {name: background, name: x}\n", ["name: given twice, keep one"]),
        ("- road\n", ["entry 0: Input should be", "found 'road'"]),
        (
            "- {name: no}\n",
            ["string, found false (YAML reads a bare yes, no, on or off so; put a text in quotes)"],
        ),
        ("- {name: background, colour: [0, 0, 0]}\n", ["entry 0: colour: Extra inputs are not permitted"]),
        (
            "- {name: background, color: [0, 0, 256]}\n",
            ["entry 0: color", "less than or equal to 255, found 256"],
        ),
        ("- {name: background, color: [0, 0]}\n", ["entry 0: color", "at least 3 items"]),
        ("- {name: road}\n- {name: sign}\n", ["entry 0 is 'road', not 'background'"]),
        ("- {name: background}\n", ["found 0 classes besides background; allowed are 1 to 254"]),
        (
            "- {name: background}\n- {name: ignore}\n- {name: road}\n",
            ["entry 1 is 'ignore', which is no class"],
        ),
        (
            "- {name: background, color: [1, 1, 1]}\n- {name: road, color: [1, 1, 1]}\n- {name: road}\n",
            [
                "entry 1 repeats the color (1, 1, 1) of entry 0",
                "entry 2 repeats the name 'road' of entry 1",
                "no color for road; give every class one (masks in RGB), or none",
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_told_at_once(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"classes\.yaml: ") as caught:
        read_class_list(tmp_path, "")
    for message in messages:
        assert message in str(caught.value)


def test_254_classes_and_the_ignored_colour_fit_and_keep_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        "{name: background, color: [0, 0, 0]}",
        *(f"{{name: c{i}, color: [{i}, 0, 9]}}" for i in range(254)),
    ]
    lines = [f"- {entry}\n" for entry in [*entries, "{name: ignore, color: [0, 0, 1]}"]]
    (tmp_path / "classes.yaml").write_text("".join(lines))
    classes = read_class_list(tmp_path, "")
    pixels = np.array([[[253, 0, 9], [0, 0, 0], [0, 0, 1], [0, 0, 9]]], np.uint8)
    assert classes.coding.decode("a.png", pixels).tolist() == [[254, 0, 255, 1]]
    monkeypatch.setattr(class_list, "MAX_CLASSES", 254)
    with pytest.raises(ValueError, match="found 254 classes besides background; allowed are 1 to 253"):
        read_class_list(tmp_path, "")
