"""House style as tests: sizes, names, docstrings, banned calls, modules that nothing uses.

Source of the idea: TigerBeetle's tidy.zig.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES_MAX = 560
FUNCTION_LINES_MAX = 70
SOURCES = sorted([*ROOT.glob("raft/**/*.py"), *ROOT.glob("kvstore/**/*.py"), *ROOT.glob("jepsen/**/*.py")])
EMPTY_NAMES = {"utils", "util", "helpers", "common", "misc", "manager"}
TWINS = {"kvstore.storage.memory", "kvstore.transport.memory"}
"""What simulations run on instead of LMDB and WebSockets; the conformance suites hold them to the same protocols."""
ENTRY_POINTS = {"kvstore.pytest_plugin", "kvstore.cli.__main__", "kvstore.cli.main"}
BANNED = {
    r"\btime\.sleep\(": "a sleep blocks the loop or hides a race",
    r"\b(TODO|FIXME|XXX)\b": "finish it, or write down in the docs what is missing",
    r"\bexcept:": "a bare except swallows CancelledError",
    r"(?<![.\w])print\(": "the package logs; only the command line prints, by click and rich",
    r"\brandom\.(random|choice|randint|shuffle|uniform)\(": "randomness comes in as a seeded generator",
}


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_source_is_tidy(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert path.stem not in EMPTY_NAMES, "a file is called by a noun of its own"
    assert text.count("\n") <= FILE_LINES_MAX, "split by role or decision"
    assert ast.get_docstring(tree) or not text.strip() or path.name == "__main__.py", "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines; a function fits a screen"
    for pattern, why in BANNED.items():
        if "print" in pattern and path.is_relative_to(ROOT / "kvstore" / "cli"):
            continue
        found = re.search(pattern, text)
        assert found is None, f"line {text[: found.start()].count(chr(10)) + 1}: {found.group()} ({why})"


def test_no_module_is_dead() -> None:
    """Every module is imported by another one, is an entry point, or a package."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    texts = {name: path.read_text() for name, path in modules.items()}
    dead = []
    for name in modules:
        if name in ENTRY_POINTS | TWINS or name.endswith(("__init__", "__main__")):
            continue
        package, _, stem = name.rpartition(".")
        parent = rf"from {re.escape(package)} import [^\n]*\b{stem}\b"
        pattern = re.compile(rf"from {re.escape(name)} import|import {re.escape(name)}\b|{parent}")
        if not any(pattern.search(text) for other, text in texts.items() if other != name):
            dead.append(name)
    assert not dead, dead


def test_project_speaks_only_of_itself() -> None:
    """No path of a development machine, in any file that git holds."""
    import subprocess

    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    found = subprocess.run(
        ["git", "grep", "-nIE", "/wo" + "rk/|/tm" + "p/plan"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not found.stdout, found.stdout
