"""Imports point one way: from higher rooms to lower ones, in no circle, and at the top of a module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "steindiff"

LEVELS = (
    ("errors", "arguments", "io", "owning", "specs"),
    ("schedules", "noise", "grids", "denoisers", "identity"),
    ("solvers",),
    ("divergence",),
    ("corrections", "rules"),
    ("trace", "sampling", "push", "standalone"),
    ("calibration",),
    ("analytic", "models", "metrics"),
    ("integrations",),
    ("diagnostics", "study", "train", "run"),
    ("report",),
    ("cli",),
)
"""Rooms (packages and single modules below src/steindiff), lowest first; a room imports its own level and lower ones."""

LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PACKAGE = "steindiff"  # the root package shows everything and is imported by the command line alone


def _modules() -> dict[str, Path]:
    names = {path: path.relative_to(ROOT.parent).with_suffix("").parts for path in ROOT.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


MODULES = _modules()


def _imported(node: ast.AST) -> Iterator[str]:
    """The modules of this package that an import statement loads; `from package import name` may name a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in MODULES)
    elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name if name in MODULES else node.module for name in inner)


def _imports(module: str) -> set[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in _imported(node)} - {module}


GRAPH = {module: _imports(module) for module in MODULES}


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else PACKAGE


def test_every_room_has_a_level():
    rooms = {_room(module) for module in MODULES} - {PACKAGE, "__main__"}
    assert rooms <= set(LEVEL), "give a new room its place in LEVELS"


def test_no_room_imports_a_higher_one():
    level = {**LEVEL, PACKAGE: len(LEVELS), "__main__": len(LEVELS)}
    pairs = {(m, i) for m, imported in GRAPH.items() for i in imported}
    assert not {(m, i) for m, i in pairs if level[_room(m)] < level[_room(i)]}


def _reachable(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        waiting += (new := GRAPH[waiting.pop()] - found)
        found |= new
    return found


def test_no_circles():
    assert not {module for module in GRAPH if module in _reachable(module)}


def test_this_package_is_imported_at_the_top_of_a_module():
    """Only a command may load its runner when it is called."""
    assert not {
        module
        for module, path in MODULES.items()
        if _room(module) != "cli"
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if any(_imported(node))
    }


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import steindiff.errors", ["steindiff.errors"]),
        ("from steindiff import grids, Corrected", ["steindiff.grids", "steindiff"]),
        ("from steindiff.errors import InputError", ["steindiff.errors"]),
        ("import torch", []),
    ],
)
def test_import_statements_are_read(statement, found):
    assert list(_imported(ast.parse(statement).body[0])) == found
