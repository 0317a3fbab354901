"""Specs: text that says which solver, grid or correction is meant, wherever a name is taken.

A spec is a name, or a call with options:

    dpmpp_2m        dpmpp_3m(exact=True)        energy(bands=8, moment=m.json)        chain(clamped, dcw)

A value is a Python literal (`0.5`, `True`, `None`, `(2, 3)`, `'text'`), `inf`, or else plain text: a path, a word, another
spec. Nothing in a spec is executed.
"""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from steindiff.errors import InputError, unknown_name

T = TypeVar("T")
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_OPTION = re.compile(r"([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Call:
    """A spec taken apart: `name(*args, **options)`."""

    name: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> Call:
    """Take a spec apart.

    Example:
        >>> parse("energy(bands=8, moment=out/m.json, eta_max=1.5)")
        Call(name='energy', args=(), options={'bands': 8, 'moment': 'out/m.json', 'eta_max': 1.5})

    Raises:
        InputError: the text is not a name or a call, its brackets do not match, or an option is given twice.
    """
    found = _CALL.fullmatch(text)
    if found is None:
        raise InputError(f"spec {text!r}: write a name, or a call such as 'dpmpp_3m(exact=True)'")
    args: list[Any] = []
    options: dict[str, Any] = {}
    inner = (found[2] or "").strip()
    for part in split(inner) if inner else []:
        option = _OPTION.fullmatch(part)
        if option is None and options:
            raise InputError(f"spec {text!r}: the value {part!r} stands after an option; write values first, then options")
        if option is None:
            args.append(_value(part))
        elif option[1] in options:
            raise InputError(f"spec {text!r}: the option {option[1]!r} is given twice; leave one out")
        else:
            options[option[1]] = _value(option[2])
    return Call(found[1], tuple(args), options)


def split(text: str) -> list[str]:
    """Split a list of specs at the commas outside brackets and quotes.

    Example:
        >>> split("dpmpp_2m, dpmpp_3m(exact=True, lower_order_final=False)")
        ['dpmpp_2m', 'dpmpp_3m(exact=True, lower_order_final=False)']

    Raises:
        InputError: brackets or quotes are not closed.
    """
    parts, closing, quote, start = list[str](), list[str](), "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in _PAIRS:
            closing.append(_PAIRS[c])
        elif c in _PAIRS.values() and (not closing or closing.pop() != c):
            raise InputError(f"{text!r}: the bracket {c!r} at character {i + 1} closes nothing; remove it or open it")
        elif c == "," and not closing:
            parts.append(text[start:i].strip())
            start = i + 1
    if closing or quote:
        raise InputError(f"{text!r}: {(quote or closing[-1])!r} is missing at the end; close every bracket and quote")
    return [*parts, text[start:].strip()]


def span(word: str) -> range | None:
    """The whole numbers of "7", or of a range "5-10"; None for any other word. A number has 40 digits at most.

    Example:
        >>> span("5-10"), span("7"), span("10-5"), span("x")
        (range(5, 11), range(7, 8), None, None)
    """
    found = re.fullmatch(r"\s*([0-9]{1,40})(?:-([0-9]{1,40}))?\s*", word)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    return range(low, high + 1) if low <= high else None


def amend(spec: str, options: Mapping[str, Any]) -> str:
    """The spec with some options set, in place of those of the same name.

    Example:
        >>> amend("clamped(gamma_min=0.1)", {"gamma_max": 1.1})
        'clamped(gamma_min=0.1, gamma_max=1.1)'
    """
    call = parse(spec)
    named = (f"{name}={value!r}" for name, value in {**call.options, **options}.items())
    return f"{call.name}({', '.join([*map(repr, call.args), *named])})"


def _value(text: str) -> Any:
    """The Python literal that the text is, or the text itself."""
    text = text.strip()
    if text in ("inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _missed(default: Any, value: Any) -> str:
    """What a value should be that is of another kind than its default; empty where it may be right."""
    if isinstance(default, bool):  # any word counts as true in Python, false and off too
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, int | float) and isinstance(value, str | bool):
        return "a number"
    return "a whole number" if isinstance(default, int) and isinstance(value, float) else ""


@dataclass(frozen=True)
class Registry(Generic[T]):
    """What specs of one kind can name."""

    kind: str
    """What an entry is, for error texts: "solver"."""
    base: type[T]
    """The type of what `make` returns."""
    entries: Mapping[str, Callable[..., T]]
    """A factory for each name; its parameters are the options of the spec."""

    def names(self) -> tuple[str, ...]:
        """The names that a spec can have."""
        return tuple(self.entries)

    def make(self, spec: str | T) -> T:
        """What a spec names; an object of the kind is returned as it is.

        Raises:
            InputError: an unknown name (with a suggestion), options that the entry does not take, a value of another kind than
                an option's default, or an object of another kind.
        """
        if isinstance(spec, self.base):
            return spec
        if not isinstance(spec, str):
            raise InputError(f"{spec!r} is no {self.kind}: give a {self.base.__name__}, or a name or spec as text")
        call = parse(spec)
        if call.name not in self.entries:
            raise unknown_name(self.kind, call.name, self.entries)
        factory = self.entries[call.name]
        try:
            signature = inspect.signature(factory)
            bound = signature.bind(*call.args, **call.options)
            for name, value in bound.arguments.items():
                if need := _missed(signature.parameters[name].default, value):
                    raise InputError(f"{self.kind} {spec!r}: {name}={value!r}: write {need}")
            return factory(*bound.args, **bound.kwargs)
        except TypeError as error:
            options = ", ".join(inspect.signature(factory).parameters) or "no options"
            raise InputError(f"{self.kind} {spec!r}: {error}; {call.name} takes {options}") from error
