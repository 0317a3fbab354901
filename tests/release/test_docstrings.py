"""The public names: each is there, and its docstring says what it is and what it raises."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
from recipes import site

MODULES = [module for module in site.modules() if module not in site.HOSTED]
SAYS = re.compile(r"[Rr]aise|[Rr]efuse|[Ee]rror")


def public(module: ModuleType) -> dict[str, Any]:
    """The names that a module shows: those of `__all__`, or what it defines without an underscore."""
    if "__all__" in vars(module):
        return {name: getattr(module, name) for name in module.__all__}
    ours = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {name: value for name, value in ours.items() if name[0] != "_"}


def described(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """A function or a class, and the public methods of a class, each with its docstring."""
    if isinstance(value, FunctionType) or inspect.isclass(value):
        yield name, value, inspect.getdoc(value) or ""
    for inner, member in vars(value).items() if inspect.isclass(value) else ():
        function = inspect.unwrap(next((f for k in ("fget", "__func__", "func") if (f := getattr(member, k, None))), member))
        if inner[0] != "_" and isinstance(function, FunctionType):
            yield f"{name}.{inner}", function, inspect.getdoc(getattr(value, inner)) or inspect.getdoc(function) or ""


def raises(value: Any) -> bool:
    """Whether a function raises an error in its own body."""
    if not isinstance(value, FunctionType):
        return False
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value)))))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return "require" in called or any(isinstance(node, ast.Raise) for node in nodes)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_there_and_say_what_they_are_and_raise(name):
    module = importlib.import_module(name)
    assert module.__doc__
    found = [entry for path, value in public(module).items() for entry in described(path, value)]
    assert [path for path, _, text in found if not text] == []
    assert [path for path, value, text in found if raises(value) and not SAYS.search(text)] == []


def test_a_name_without_a_docstring_would_be_seen():
    class Bare:
        def method(self):
            raise ValueError

    Bare.__doc__ = None
    found = list(described("Bare", Bare))
    assert [(path, text) for path, _, text in found] == [("Bare", ""), ("Bare.method", "")]
    assert [raises(value) for _, value, _ in found] == [False, True]
