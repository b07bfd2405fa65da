"""No file that a run reads can run code: the tree is searched for the forms that would let it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SKIPPED = {".venv", "venv", "runs", "data_root", "data", "build"}
UNPACKER = (
    "utils/download/archives.py"  # checks every member of an archive first (tests/tools/test_unpacking.py)
)
# The test of a refused pickle has to write one.
PICKLES = {"tests/trainer/test_checkpoint.py"}


def files(suffix: str) -> list[Path]:
    paths = sorted(ROOT.rglob(f"*{suffix}"))
    return [
        p
        for p in paths
        if not any(part in SKIPPED or part.startswith(".") for part in p.relative_to(ROOT).parts)
    ]


def keyword_value(call: ast.Call, keyword: str) -> object:
    """The constant given for a keyword; None without the keyword, and an AST node for what is no constant."""
    for given in call.keywords:
        if given.arg == keyword:
            return given.value.value if isinstance(given.value, ast.Constant) else given.value
    return None


def describe_call(call: ast.Call) -> str | None:
    """The unsafe form of a call, if it has one."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    # A method of that name (model.load_state_dict) takes tensors, a function of timm takes a file.
    if name in ("torch.load", "load_state_dict") and keyword_value(call, "weights_only") is not True:
        return f"{name} without weights_only=True"
    if keyword_value(call, "shell") not in (None, False):
        return "shell=True"
    if keyword_value(call, "allow_pickle") not in (None, False):
        return "allow_pickle=True"
    if last in ("extractall", "unpack_archive"):
        return "unpacking without checks"
    if name in UNSAFE_NAMES or re.fullmatch(r"yaml\.(unsafe_|full_)?load(_all)?", name):
        return name
    return None


UNSAFE_NAMES = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_LOADERS = {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}


def find_unsafe(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and form of every unsafe call or import in Python source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (form := describe_call(node)) is not None:
            yield node.lineno, form
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            yield from (
                (node.lineno, f"import {name}") for name in names if name.split(".")[0] in UNSAFE_MODULES
            )
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_LOADERS:
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "load_state_dict(path)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "yaml.FullLoader",
        "import pickle",
        "from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "class Mine(yaml.Loader): pass",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
    ],
)
def test_every_unsafe_form_is_found(source: str) -> None:
    assert list(find_unsafe(f"x = 1\n{source}"))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "model.eval()",
        "model.load_state_dict(state)",
        "re.compile(text)",
        "model.compile()",
        "yaml.safe_load(text)",
        "np.load(path)",
        "class Mine(yaml.SafeLoader): pass",
        "build(name, **options)",
        "np.load(path, allow_pickle=False)",
        "subprocess.run(command, shell=False)",
        "from torchvision import transforms",
    ],
)
def test_no_safe_form_is_taken_for_an_unsafe_one(source: str) -> None:
    assert list(find_unsafe(source)) == []


def test_the_tree_is_searched() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in files(".py")}
    assert {
        "main.py",
        "models/saved.py",
        "models/backbone.py",
        "utils/download/archives.py",
        "tests/support/cli.py",
    } <= names


def test_no_python_file_can_run_code_from_a_file() -> None:
    found = []
    for path in files(".py"):
        name = path.relative_to(ROOT).as_posix()
        for line, form in find_unsafe(path.read_text(encoding="utf-8")):
            allowed = (name == UNPACKER and form == "unpacking without checks") or (
                name in PICKLES and form == "import pickle"
            )
            if not allowed:
                found.append(f"{name}:{line}: {form}")
    assert found == []


def test_no_shell_script_evaluates_text() -> None:
    scripts = [*files(".sh"), ROOT / ".ci" / "run"]
    assert len(scripts) >= 3
    pattern = re.compile(
        r"(^|[;&|(`]|\bthen|\bdo)\s*(eval|source)\s|\b(curl|wget)\b[^\n]*\|\s*(ba)?sh\b", re.MULTILINE
    )
    assert [path.name for path in scripts if pattern.search(path.read_text(encoding="utf-8"))] == []
