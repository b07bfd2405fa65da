"""The README says what is true: its table is the config's, its files exist."""

import re
from pathlib import Path

from tools.config_table import config_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_configuration_table_is_that_of_the_config() -> None:
    assert config_table() in README


def test_the_first_two_commands_install_and_run_the_demo_and_the_tests() -> None:
    demo, tests = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)[:2]
    assert demo.count("\n") == tests.count("\n") == 1
    assert "main.py --config configs/demo.yaml" in demo
    assert "pytest" in tests


def test_every_file_that_it_names_exists() -> None:
    named = set(
        re.findall(r"`((?:datasets|losses|models|trainer|utils|tests|tools|configs)/[\w/]+\.\w+)`", README)
    )
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []


def test_every_test_that_it_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(?:(\w+)::)?(test_\w+)`", README)
    assert len(named) > 20
    for file, group, name in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {name}\(", source, re.MULTILINE), f"{file} has no {name}"
        assert not group or f"class {group}:" in source
