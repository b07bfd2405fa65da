"""tools/backbones.py and docs/backbones.md: what is on the page was tried, and is what the tool says."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES
from tools.backbones import HEADERS, TRIED, main

MARKED = r"<!-- backbones:.*?-->\n(.*?)<!-- end of backbones -->"


def sections() -> dict[str, str]:
    """The page's tables by the model."""
    (block,) = re.findall(MARKED, PAGES["docs/backbones.md"], re.DOTALL)
    parts = re.split(r"^## (\w+)\n", block, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_page_has_a_row_for_every_backbone_that_the_tool_tries() -> None:
    assert sections().keys() == TRIED.keys()
    for model, text in sections().items():
        rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
        assert sorted(name for name, _ in rows) == sorted(TRIED[model])
        assert [name for name, cells in rows if not cells.endswith(TRIED[model][name])] == []
        assert f"| {' | '.join(HEADERS[model])} |" in text


@pytest.mark.parametrize(
    ("model", "fits", "fits_not"),
    [
        ("deeplabv3", "mobilenetv4_conv_small", "maxvit_tiny_tf_224"),
        ("segmenter", "eva02_tiny_patch14_224", "vit_relpos_small_patch16_224"),
    ],
)
def test_a_try_gives_the_rows_that_the_page_has(
    model: str, fits: str, fits_not: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([fits, fits_not, "--model", model]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert len(lines) == 2
    assert [line for line in lines if line not in sections()[model].splitlines()] == []


def test_a_backbone_that_timm_does_not_know_is_told_with_similar_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["resnet1001"]) == 2
    assert "| `resnet1001` | timm has no model 'resnet1001'; similar: " in capsys.readouterr().out
