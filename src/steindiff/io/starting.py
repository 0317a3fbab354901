"""An interrupt while the libraries of the command are imported, which takes seconds: one line, and nothing to be kept."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

PROGRAM = "steindiff"
LINE = "stopped: interrupted before it began\n"


def is_program() -> bool:
    """Whether this process is `steindiff` or `python -m steindiff`, and not a program that imports the package."""
    called = PurePath(*sys.argv[:1])
    if called.name == "-m":  # Python is still looking for the module
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == PROGRAM
    return PROGRAM in (called.stem, called.parent.name if called.name == "__main__.py" else None)


@contextmanager
def starting() -> Iterator[None]:
    """Within this an interrupt ends the command with code 130; to other programs it is the exception that it was.

    It ends at once: an exception in the midst of an import comes out as another one, with a traceback of its own.
    """
    ours = is_program() and threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    try:
        os.write(2, LINE.encode())
    finally:
        os._exit(130)
