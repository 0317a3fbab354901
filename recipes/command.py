"""The command line that recipes and research share: options are the fields of a dataclass, help is the module's docstring.

A field is `name: Annotated[type, "its help"] = default`, with the least value it may have as a third part where there is one.
The last function of a script, which takes these options, is the command:

    @command
    def main(o: Options) -> None:
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from steindiff.errors import InputError, SteindiffError

T = TypeVar("T")


def command(action: Callable[[T], object]) -> Callable[..., int]:
    """The command line of an action; where its module is the program, it runs at once."""
    main = partial(_run, action)
    if action.__module__ == "__main__":
        sys.exit(main())
    return main


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
            _check("--" + name.replace("_", "-"), values[name], *get_args(hint))
        torch.set_num_threads(values.get("threads", 1))
        action(options(**values))
    except SteindiffError as error:
        print(f"{p.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _add(p: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, text: str, least: float | None = None) -> None:
    flag = "--" + field.name.replace("_", "-")
    if hint is bool:
        p.add_argument(flag, action="store_true", help=text)
        return
    several, required = get_origin(hint) is tuple, field.default is dataclasses.MISSING
    (kind, *_) = get_args(hint) or (hint,)
    default = None if required else field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = text if default is None else f"{text}; default: {shown}"
    kind = str if get_origin(kind) is Literal else kind
    p.add_argument(flag, type=kind, nargs="+" if several else None, default=default, required=required, help=text)


def _check(flag: str, value: Any, hint: Any, text: str, least: float | None = None) -> None:
    each = value if isinstance(value, tuple) else (value,)
    given = f"{flag} {' '.join(map(str, each))}"
    allowed = next((get_args(part) for part in get_args(hint) if get_origin(part) is Literal), None)
    if allowed and not set(each) <= set(allowed):
        raise InputError(f"{given}: choose from {', '.join(allowed)}")
    if least is not None and any(v is not None and not v >= least for v in each):
        raise InputError(f"{given}: {'each ' if len(each) > 1 else ''}must be at least {least}")
