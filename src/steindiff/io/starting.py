"""The import of the command's libraries, which takes seconds: an interrupt, or too little memory for one, is one line."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

PROGRAM = "steindiff"
LINE = "stopped: interrupted before it began\n"
_SHORT = ("failed to map", "cannot allocate", "cannot open shared object", "too many open files")
"""What the loader of libraries says where memory or open files do not suffice."""


def is_program() -> bool:
    """Whether this process is `steindiff` or `python -m steindiff`, and not a program that imports the package."""
    called = PurePath(*sys.argv[:1])
    if called.name == "-m":  # Python is still looking for the module
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == PROGRAM
    return PROGRAM in (called.stem, called.parent.name if called.name == "__main__.py" else None)


@contextmanager
def starting() -> Iterator[None]:
    """Within this an interrupt ends the command with code 130, and a library that has no room with code 2.

    To other programs both are the exceptions that they were. An interrupt ends the command at once: an exception in the midst
    of an import comes out as another one, with a traceback of its own.
    """
    ours = is_program() and threading.current_thread() is threading.main_thread()
    handled = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    except (ImportError, OSError, MemoryError) as error:
        reason = _lack(error) if ours else None
        if reason is None:
            raise
        print(
            f"error: a library cannot be loaded ({reason}): give the process more memory (ulimit -v, ulimit -n)",
            file=sys.stderr,
        )
        sys.exit(2)
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _lack(error: BaseException) -> str | None:
    """What an error, or the one that it came from, says of too little memory; None where it says nothing of it."""
    found: BaseException | None = error
    while found is not None:
        text = " ".join(str(found).split())
        if isinstance(found, MemoryError) or any(words in text.lower() for words in _SHORT):
            return text[:200] or "memory does not suffice"
        found = found.__cause__ or found.__context__
    return None


def _end(number: int, frame: object) -> None:
    try:
        os.write(2, LINE.encode())
    finally:
        os._exit(130)
