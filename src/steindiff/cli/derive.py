"""Options from a configuration: type, default, least value and help of a field are said once, where the field is."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from steindiff import specs

FLAGS = {"first_seed": "--seed", "class_index": "--class"}
_BOTH = ("sigma_min", "sigma_max")  # EDM's program spells them with an underscore
_LISTS = (tuple[str, ...], tuple[int, ...])
Command = Callable[..., None]


def options_of(
    config: type[Any], *, changes: bool = False, flags: Mapping[str, str] = FLAGS, **known: Iterable[str]
) -> Callable[[Command], Command]:
    """A command's `**given` become options, one for each field of a configuration that the command does not name itself.

    The help is the field's line under Args, in which `field` becomes its flag; `LEAST` of the configuration has the least
    values. Lists are separated by commas; whole numbers may be ranges such as 5-10. Fields that are objects or have no line
    have no option, and what is None is not in `given`. A command of two configurations has two such decorators.

    Args:
        config: the dataclass.
        changes: no option has a default: the options change a preset.
        flags: for a field, the flag that is not its name.
        known: for a field, the names that its help lists.
    """
    kinds = {name: _kind(hint) for name, hint in get_type_hints(config).items()}
    lines = dict(re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", inspect.getdoc(config) or "", re.MULTILINE))
    spelled = {name: flags.get(name, "--" + name.replace("_", "-")) for name in kinds}

    def option(field: Field[Any]) -> Parameter:
        name, several = field.name, kinds[field.name] in _LISTS
        line = re.sub(r"`(\w+)`", lambda found: spelled.get(found[1], found[1]), " ".join(lines[name].split()))
        text = line[0].upper() + line[1:] + " Comma-separated." * several
        text += f" Known: {', '.join(known[name])}." if name in known else ""
        both = ["--" + name] if name in _BOTH else []
        about = typer.Option(*both, spelled[name], help=text, min=getattr(config, "LEAST", {}).get(name))
        default = None if changes or several else Parameter.empty if field.default is MISSING else field.default
        kind: Any = str if several else kinds[name]
        hint: Any = Annotated[kind if default is not None else kind | None, about]
        return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=hint)

    def derive(command: Command) -> Command:
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        own = [p for p in parameters if p.kind is not Parameter.VAR_KEYWORD]
        named = {p.name for p in own}
        derived = [option(f) for f in fields(config) if kinds[f.name] and f.name in lines.keys() - named]

        @wraps(command)
        def run(**values: Any) -> None:
            given = {p.name: _read(kinds[p.name], values.pop(p.name)) for p in derived}
            command(**values, **{name: value for name, value in given.items() if value is not None})

        options = sorted((*own, *derived), key=lambda p: p.default is not Parameter.empty)
        vars(run).update(__signature__=Signature(options))
        run.__annotations__ = {p.name: p.annotation for p in options}
        return run

    return derive


def _kind(hint: Any) -> Any:
    """The type of a field, without None; text for a word of several; None where text cannot say the value."""
    (kind,) = set(get_args(hint)) - {NoneType} if NoneType in get_args(hint) else {hint}
    kind = str if get_origin(kind) is Literal else kind
    return kind if kind in (bool, int, float, str, Path, *_LISTS) else None


def _read(kind: Any, value: Any) -> Any:
    """A value, or the entries of a comma list; a word that is no number is left for the configuration to refuse."""
    if value is None or kind not in _LISTS:
        return value
    words = specs.split(value) if value else []
    if kind == tuple[int, ...]:
        return tuple(number for word in words for number in _numbers(word)) or None
    return tuple(words) or None


def _numbers(word: str) -> Sequence[int | str]:
    """A whole number, those of a range low-high of at most 10,000, or the word itself."""
    found = specs.span(word)
    return found if found is not None and found.stop - found.start <= 10_000 else (word,)
