"""The command line that recipes and research share: options are the arguments of a function, help is the module's docstring.

An option is `name: Annotated[type, "its help"] = default`, with the least value it may have as a third part where there is one.
The last function of a script is the command. It takes these options, or a dataclass of them that other functions share:

    @command
    def main(o: Options) -> None:
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from functools import partial
from inspect import Parameter, signature
from itertools import chain
from typing import Any, get_args, get_origin, get_type_hints

import torch

from steindiff.errors import InputError, SteindiffError


def command(action: Callable[..., object]) -> Callable[..., int]:
    """The command line of an action; where its module is the program, it runs at once."""
    main = partial(_run, action)
    if action.__module__ == "__main__":
        sys.exit(main())
    return main


def need(holds: bool, text: str, **options: object) -> None:
    """Raise InputError, which names options with their values and says what they need, unless it holds."""
    if not holds:
        raise InputError(f"{' '.join(f'{_flag(name)} {value}' for name, value in options.items())}: {text}")


def print_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table in Markdown, each row as soon as it is made."""
    for row in chain([columns, ["---"] * len(columns)], rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def _run(action: Callable[..., object], argv: Sequence[str] | None = None) -> int:
    """Parse, check and act. Returns 0, or 2 after one line on stderr that says what to change.

    Torch computes with one CPU thread, or with as many as an option `threads` says: their number changes the last digits.
    """
    first, doc = next(iter(get_type_hints(action).values())), sys.modules[action.__module__].__doc__
    takes: Any = first if is_dataclass(first) else action
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(takes, include_extras=True)
    for option in signature(takes).parameters.values():
        _add(p, option, *get_args(hints[option.name]))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(p.parse_args(argv)).items()}
    try:
        for name, value in values.items():
            _check(name, value, *get_args(hints[name])[2:])
        torch.set_num_threads(values.get("threads", 1))
        action(takes(**values)) if takes is first else action(**values)
    except SteindiffError as error:
        print(f"{p.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add(p: argparse.ArgumentParser, option: Parameter, hint: Any, text: str, *_: float) -> None:
    if hint is bool:
        p.add_argument(_flag(option.name), action="store_true", help=text)
        return
    (kind, *_), required = get_args(hint) or (hint,), option.default is Parameter.empty
    default, several = None if required else option.default, "+" if get_origin(hint) is tuple else None
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = text if default is None else f"{text}; default: {shown}"
    p.add_argument(_flag(option.name), type=kind, nargs=several, default=default, required=required, help=text)


def _check(name: str, value: Any, least: float | None = None) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        need(least is None or number is None or number >= least, f"must be at least {least}", **{name: number})
