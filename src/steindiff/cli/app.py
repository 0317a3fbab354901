"""The command line: one module of this room a command."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from steindiff.cli import bench, calibrate, convert, demo, diagnose, doctor, evaluate, models, sample, score, train
from steindiff.cli.options import Threads, use_threads
from steindiff.errors import SteindiffError
from steindiff.io.files import installed_version
from steindiff.io.memory import memory_lacks
from steindiff.io.refusals import remedy
from steindiff.io.streams import guarded, one_line, say

TRACEBACK: Final = "STEINDIFF_TRACEBACK"
"""The variable that lets a fault of ours show its traceback."""

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


class _Stopped(BaseException):
    """The command shall end; typer has its own ways with KeyboardInterrupt, a way for each version."""

    def __init__(self, how: str, code: int) -> None:
        super().__init__(how)
        self.code = code


def _say_version(wanted: bool) -> None:
    if wanted:
        say(f"steindiff {installed_version() or 'from a folder that was never installed'}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")]


@app.callback()
def _root(threads: Threads = 0, version: Version = False) -> None:
    """Few-step diffusion sampling with step corrections by Stein's identity."""
    use_threads(threads)


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which says _Interrupted where it is interrupted."""

    @wraps(command)
    def run(**given: Any) -> None:
        try:
            command(**given)
        except KeyboardInterrupt:
            raise _Stopped("interrupted", 130) from None

    return run


for _module in (sample, calibrate, convert, demo, diagnose, doctor, train, bench, evaluate, score, models):
    _name = _module.__name__.rpartition(".")[2]
    # The examples are the docstring of the module, after its first line; a command is a paragraph, or rich may join two.
    _examples = re.sub(r"\n  (?=\S)", "\n\n  ", escape((_module.__doc__ or "").partition("\n")[2]))
    _command = _interruptible(getattr(_module, f"{_name}_command"))
    app.command(_name, epilog=_examples.replace("Examples:", "[bold]Examples[/bold]"))(_command)


def main() -> None:
    """Run the command line and exit; whatever goes wrong is one line on stderr.

    The code is 0, or what a command says; 2 for what the user can mend, 3 for a fault of ours, 130 for an interrupt, 143 where
    the process is told to end.
    """
    with guarded(), _ending():
        code = _run()
    sys.exit(code)


@contextmanager
def _ending() -> Iterator[None]:
    """Within this, the signal to end, as torchrun sends it where another process has died, is an exception."""

    def end(number: int, frame: object) -> None:
        raise _Stopped("told to end, by a launcher whose other process has died, or by the system", 143)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run() -> int | str | None:
    """The exit code of the command line of this process."""
    code: int | str | None = 0
    try:
        try:
            app()
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
    except _Stopped as stop:
        return _failed(f"{stop}: what is finished is kept", stop.code, "stopped")
    except SteindiffError as error:
        return _failed(str(error), 2)
    except OSError as error:
        return _failed(f"{error}: {remedy(error) or 'name another file or folder, or change its permissions'}", 2)
    except Exception as error:  # the last net: a user never meets a traceback, unless asked for
        if memory_lacks(error):
            return _failed(f"memory does not suffice ({error}): take a smaller --batch, or less of what grows with it", 2)
        if helps := remedy(error):
            return _failed(f"{error}: {helps}", 2)
        if os.environ.get(TRACEBACK):
            raise
        return _failed(f"{type(error).__name__}: {error}: this is a fault in steindiff; {TRACEBACK}=1 shows where", 3)
    return code


def _failed(text: str, code: int, word: str = "error") -> int:
    """Say what went wrong, in one line."""
    Console(stderr=True).print(Text.assemble((f"{word}:", "bold red"), " ", one_line(text)), soft_wrap=True)
    return code
