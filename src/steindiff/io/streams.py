"""Standard output and standard error that may be closed, full, or unable to show a letter.

What a command shows must not decide whether its work is done. A letter that the encoding lacks is written as Python escapes it.
Where standard error fails, what it would show is dropped. Where standard output fails, somebody misses it: this is an error.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from steindiff.errors import InputError


class OutputLost(InputError):
    """Standard output is closed or full: what was to be shown is lost."""


class _Shown:
    """A text stream, or None where it was closed from the start; all that is not written here is the stream's own."""

    def __init__(self, stream: TextIO | None, needed: bool) -> None:
        self._stream, self._needed, self.failed = stream, needed, False

    def write(self, text: str) -> int:
        """Write all of the text, with letters escaped that the stream's encoding lacks."""
        try:
            encoding = getattr(self._need(), "encoding", None) or "utf-8"  # not the error's, which is "charmap" for many
            try:
                self._need().write(text)
            except UnicodeEncodeError:
                self._need().write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        try:
            self._need().flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _need(self) -> TextIO:
        if self._stream is None:
            raise ValueError("closed")
        return self._stream

    def _fail(self, error: Exception) -> None:
        self.failed = True
        if self._needed:
            reason = getattr(error, "strerror", None) or error
            raise OutputLost(f"standard output cannot be written to ({reason}): what was to be shown is lost") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Within this, writing to sys.stdout raises OutputLost where it fails, and writing to sys.stderr raises nothing."""
    _fill_closed()
    out, err = sys.stdout, sys.stderr
    shown, told = _Shown(out, True), _Shown(err, False)
    sys.stdout, sys.stderr = cast(TextIO, shown), cast(TextIO, told)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
        for number, (stream, guard) in enumerate(((out, shown), (err, told)), 1):
            if guard.failed and stream is not None and stream in (sys.__stdout__, sys.__stderr__):
                _to_nowhere(number)


def one_line(text: object) -> str:
    """The text in one line, with characters escaped that have no picture: a name must not move the cursor."""
    line = " ".join(str(text).splitlines())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def say(text: object) -> None:
    """Print a line, as it is: no word of it is markup, and no terminal breaks it."""
    print(one_line(text))


def _fill_closed() -> None:
    """Give the null device to a standard stream that is closed; else the next file that is opened would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


def _to_nowhere(number: int) -> None:
    """The interpreter flushes its streams once more at its end, and would complain."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, number)
    os.close(nowhere)
