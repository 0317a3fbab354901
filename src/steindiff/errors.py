"""Errors and warnings; each message names the offending value, the limit it broke and the remedy."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any


class SteindiffError(Exception):
    """Base class: everything this package raises on purpose."""


class InputError(SteindiffError, ValueError):
    """An argument is outside what the mathematics or the interface allows."""


class MissingLibraryError(InputError, ImportError):
    """A library that only a part of the package needs is not installed; names the extra that brings it."""


class ModelFileError(SteindiffError, ValueError):
    """A model file is missing, truncated, corrupted or not one of ours."""


class AccessError(SteindiffError):
    """The system does not let this user, or this process, read a file, which need not be damaged."""


class NonFiniteError(SteindiffError, ArithmeticError):
    """A network output or a state became NaN or infinite; names the step and the noise level."""


class ScheduleWarning(UserWarning):
    """A denoiser's schedule is unknown where it matters, and is taken as VE."""


class StateWarning(UserWarning):
    """The state's size does not fit the first noise level."""


class DerivativeWarning(UserWarning):
    """The derivative of a step looks as if the network had no part in it."""


class FolderWarning(UserWarning):
    """A folder lies where no lock keeps a second run out."""


def require(holds: bool, need: str, **values: object) -> None:
    """Raise InputError, which names the values and what they need, unless it holds.

    Example:
        >>> require(False, "need 0 < eta ≤ 1", eta=2.0)
        Traceback (most recent call last):
        steindiff.errors.InputError: eta=2.0: need 0 < eta ≤ 1
    """
    if not holds:
        raise InputError(f"{', '.join(f'{name}={brief(repr(value))}' for name, value in values.items())}: {need}")


def brief(text: str, most: int = 400) -> str:
    """Text on one line; of a long one the beginning and the end, `most` characters.

    Example:
        >>> brief("a name of " + 1000 * "z", most=12)
        'a name … zzzzzz'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2].rstrip()} … {line[-(most // 2) :].lstrip()}"


def require_numbers(**values: object) -> None:
    """Raise InputError for anything but real numbers: text, tensors, complex numbers, None."""
    for name, value in values.items():
        real = isinstance(value, Real) and not isinstance(value, bool)
        require(real, f"need a real number, and not {type(value).__name__}", **{name: value})


def require_whole(least: int, **values: object) -> None:
    """Raise InputError for anything but whole numbers of at least `least`, and for those that nothing can count."""
    for name, value in values.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        require(whole and least <= value <= MOST, f"need a whole number from {least:,} to {MOST:,}", **{name: value})  # type: ignore[operator]


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Raise MissingLibraryError where an import of this block finds no library; the extra is what brings it.

    Example:
        >>> with needs("cli", "a progress bar"):
        ...     import no_such_library
        Traceback (most recent call last):
        steindiff.errors.MissingLibraryError: a progress bar needs no_such_library: pip install 'steindiff[cli]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or str(error)).partition(".")[0]
        if library == __package__:
            raise
        raise MissingLibraryError(f"{what} needs {library}: pip install 'steindiff[{extra}]'") from error


MOST, MOST_SEED = 10**9, 2**62


def at_least(config: Any, least: Mapping[str, float]) -> None:
    """Raise InputError for a field below its least value, and for a whole number that nothing can count; None is no value."""
    for name, low in least.items():
        value, most = getattr(config, name), MOST_SEED if name.endswith("seed") else MOST
        require(value is None or value >= low, f"must be at least {low}", **{name: value})
        require(not isinstance(value, int) or value <= most, f"must be at most {most:,}", **{name: value})


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a registry: lists the known names and suggests the nearest.

    Example:
        >>> print(unknown_name("solver", "dpmp_2m", ["ddim", "dpmpp_2m"]))
        unknown solver 'dpmp_2m': did you mean 'dpmpp_2m'? Known: ddim, dpmpp_2m
    """
    names = sorted(known)
    lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]!r}? " if near else ""
    return InputError(f"unknown {kind} {brief(repr(name))}: {hint}Known: {', '.join(names)}")
