"""The import law of docs/architecture.md: a module imports its own folder or an earlier layer, never a later one.

Method: the imports are read from the source by ast, those inside functions too.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    "raft",
    "kvstore.base",
    "kvstore.storage",
    "kvstore.transport",
    "kvstore.gossip",
    "kvstore.state",
    "kvstore.replica",
    "kvstore.placement",
    "kvstore.router",
    "kvstore.api",
    "kvstore.node_http",
    "kvstore.node_gossip",
    "kvstore.node",
    "kvstore.client",
    "kvstore.testing",
    "kvstore.pytest_plugin",
    "kvstore.cli",
)
ONLY_BASE = ("kvstore.client",)
"""A client may be installed without the server's parts in mind: it knows the wire, nothing else."""
PURE_STDLIB = frozenset(
    {"__future__", "bisect", "collections", "dataclasses", "enum", "itertools", "random", "struct", "typing"}
)
"""What raft/ may import: no clock, no I/O, no threads, no codec."""

GOSSIP_IO = {"driver.py", "endpoint.py", "push_pull.py", "resolver.py"}
"""The only files of kvstore/gossip that see a loop or a socket; all else takes time and chance as arguments."""
PURE_GOSSIP = PURE_STDLIB | {"hashlib", "heapq", "hmac", "math", "msgspec", "re"}


def _modules() -> list[Path]:
    return sorted([*ROOT.glob("raft/**/*.py"), *ROOT.glob("kvstore/**/*.py")])


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.add(node.module)
    return names


def _layer(module: str) -> int | None:
    for number, layer in enumerate(LAYERS):
        if module == layer or module.startswith(layer + "."):
            return number
    return None


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_go_to_earlier_layers(path: Path) -> None:
    own = _layer(_name(path))
    if own is None:
        assert _name(path) == "kvstore", f"{path} is in no layer: add it to LAYERS"
        return
    for module in _imports(path):
        layer = _layer(module)
        if layer is not None:
            assert layer <= own, f"{_name(path)} imports {module}, which is a later layer"
            if LAYERS[own] in ONLY_BASE:
                assert LAYERS[layer] in (*ONLY_BASE, "kvstore.base"), f"{_name(path)} imports {module}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("raft/*.py")), ids=_name)
def test_raft_is_pure(path: Path) -> None:
    foreign = {module for module in _imports(path) if module.split(".")[0] not in PURE_STDLIB | {"raft"}}
    assert not foreign, f"{path.name} imports {foreign}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("kvstore/gossip/*.py")), ids=_name)
def test_gossip_core_is_pure(path: Path) -> None:
    if path.name in GOSSIP_IO:
        return
    own = {f"kvstore.gossip.{name[:-3]}" for name in GOSSIP_IO}
    foreign = {module for module in _imports(path) if module.split(".")[0] not in PURE_GOSSIP | {"kvstore", "raft"}}
    assert not foreign, f"{path.name} imports {foreign}"
    assert not _imports(path) & own, f"{path.name} imports what does I/O"


PLACEMENT_CORE = ("board", "filters", "moves", "operators", "safety", "shares", "thresholds", "view", "schedulers")
"""What decides: tried on paper, by table and by seed. What observes and acts is beside it."""


@pytest.mark.parametrize("name", PLACEMENT_CORE)
def test_what_places_is_pure(name: str) -> None:
    own = {f"kvstore.placement.{module}" for module in PLACEMENT_CORE}
    base = {f"kvstore.base.{module}" for module in ("errors", "ids", "limits", "shards")}
    paths = [*ROOT.glob(f"kvstore/placement/{name}.py"), *ROOT.glob(f"kvstore/placement/{name}/*.py")]
    assert paths
    for module in {module for path in paths for module in _imports(path)}:
        if module.startswith("kvstore"):
            assert module in base or ".".join(module.split(".")[:3]) in own, f"{name} imports {module}"
        else:
            assert module.split(".")[0] in PURE_STDLIB | {"heapq", "msgspec"}, f"{name} imports {module}"


CHECKERS = (
    *("history", "formats", "model", "models", "windows", "search", "linearizability", "counterexample"),
    *("narration", "report", "set_check", "list_append", "cycles", "check_command", "commands"),
)
"""What judges histories: it would judge any other store just as well."""


@pytest.mark.parametrize("name", CHECKERS)
def test_checkers_know_nothing_of_the_store(name: str) -> None:
    paths = sorted(ROOT.glob(f"jepsen/{name}.py")) + sorted(ROOT.glob(f"jepsen/{name}/*.py"))
    assert paths
    allowed = {f"jepsen.{checker}" for checker in CHECKERS}
    for module in {module for path in paths for module in _imports(path)}:
        parts = module.split(".")
        assert parts[0] not in ("kvstore", "raft"), module
        if parts[0] == "jepsen" and len(parts) > 1 and name != "commands":  # which imports a command when it is used
            assert ".".join(parts[:2]) in allowed, module


def test_every_third_party_import_is_a_dependency() -> None:
    """What the package imports is what pyproject.toml names (tests' own needs are in the `test` extra)."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {one.split(">")[0].split("<")[0].replace("-", "_") for one in project["dependencies"]}
    optional = {"pytest", "pytest_asyncio"}  # kvstore.pytest_plugin is loaded by pytest only
    imported = {module.split(".")[0] for path in _modules() for module in _imports(path)}
    foreign = imported - set(sys.stdlib_module_names) - {"raft", "kvstore"} - optional
    assert foreign <= named, foreign - named
    assert named - foreign <= {"msgpack"}, f"named in pyproject.toml and never imported: {named - foreign}"
