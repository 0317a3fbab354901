"""The command line that recipes and research share: options are the fields of a dataclass, help is the module's docstring.

A field is `name: Annotated[type, "its help"] = default`, with the least value it may have as a third part where there is one.
The last function of a script, which takes these options, is the command:

    @command
    def main(o: Options) -> None:
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch

from steindiff.errors import InputError, SteindiffError

T = TypeVar("T")


def command(action: Callable[[T], object]) -> Callable[..., int]:
    """The command line of an action; where its module is the program, it runs at once."""
    main = partial(_run, action)
    if action.__module__ == "__main__":
        sys.exit(main())
    return main


def print_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table in Markdown, each row as soon as it is made."""
    for row in chain([columns, ["---"] * len(columns)], rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def _run(action: Callable[[T], object], argv: Sequence[str] | None = None) -> int:
    """Parse, check and act. Returns 0, or 2 after one line on stderr that says what to change.

    Torch computes with one CPU thread, or with as many as an option `threads` says: their number changes the last digits.
    """
    options, doc = next(iter(get_type_hints(action).values())), sys.modules[action.__module__].__doc__
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        _add(p, field, *get_args(hints[field.name]))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(p.parse_args(argv)).items()}
    try:
        for name, hint in hints.items():
            _check(name, values[name], *get_args(hint)[2:])
        torch.set_num_threads(values.get("threads", 1))
        action(options(**values))
    except SteindiffError as error:
        print(f"{p.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add(p: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, text: str, *_: float) -> None:
    if hint is bool:
        p.add_argument(_flag(field.name), action="store_true", help=text)
        return
    (kind, *_), required = get_args(hint) or (hint,), field.default is dataclasses.MISSING
    default, several = None if required else field.default, "+" if get_origin(hint) is tuple else None
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = text if default is None else f"{text}; default: {shown}"
    p.add_argument(_flag(field.name), type=kind, nargs=several, default=default, required=required, help=text)


def _check(name: str, value: Any, least: float | None = None) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if least is not None and number is not None and not number >= least:
            raise InputError(f"{_flag(name)} {number}: must be at least {least}")
